-- The items whose knowledge is closest to that of one item, by cosine distance.
--
-- :domain text = movies  the domain
-- :item text = null  the item's id; the first that has knowledge when it is not given
-- :k int = 10  how many

WITH asked AS (
    SELECT item_id FROM features.item
    WHERE domain = :domain AND (:item IS NULL OR item_id = :item)
    ORDER BY item_id
    LIMIT 1
)
SELECT asked.item_id AS item, near.item AS neighbour, near.title, near.item_group AS group_name, near.distance
FROM asked CROSS JOIN LATERAL features.similar_items(asked.item_id, CAST(:k AS integer), :domain) AS near
ORDER BY near.distance;
