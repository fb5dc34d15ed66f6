-- The items whose knowledge is closest to that of one item, by cosine distance.
-- Filters are applied while the index is scanned, so that k rows come back whatever the filters drop.
--
-- :domain text = movies  the domain
-- :item text = null  the item's id; the first that has knowledge when it is not given
-- :k int = 10  how many

SET LOCAL hnsw.iterative_scan = strict_order;

WITH asked AS MATERIALIZED (
    SELECT entity_id, encoder, embedding
    FROM features.item_features
    WHERE domain = :domain AND (:item IS NULL OR entity_id = :item)
    ORDER BY entity_id, encoder
    LIMIT 1
)
SELECT
    (SELECT entity_id FROM asked) AS item,
    entity_id AS neighbour,
    attributes ->> 'title' AS title,
    group_name,
    embedding <=> (SELECT embedding FROM asked) AS distance
FROM features.item_features
WHERE domain = :domain
    AND encoder = (SELECT encoder FROM asked)
    AND entity_id <> (SELECT entity_id FROM asked)
ORDER BY embedding <=> (SELECT embedding FROM asked)
LIMIT :k;
