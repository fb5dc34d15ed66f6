-- The items whose knowledge is closest to that of one user, by cosine distance; what the user already knows is among them.
--
-- :domain text = movies  the domain
-- :user text = null  the user's id; the first that has knowledge when it is not given
-- :k int = 10  how many

WITH asked AS (
    SELECT user_id FROM features.user
    WHERE domain = :domain AND (:user IS NULL OR user_id = :user)
    ORDER BY user_id
    LIMIT 1
)
SELECT asked.user_id AS "user", near.item, near.title, near.item_group AS group_name, near.distance
FROM asked CROSS JOIN LATERAL features.match(asked.user_id, CAST(:k AS integer), :domain) AS near
ORDER BY near.distance;
