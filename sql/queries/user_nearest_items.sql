-- The items whose knowledge is closest to that of one user, by cosine distance; what the user already knows is among them.
-- Filters are applied while the index is scanned, so that k rows come back whatever the filters drop.
--
-- :domain text = movies  the domain
-- :user text = null  the user's id; the first that has knowledge when it is not given
-- :k int = 10  how many

SET LOCAL hnsw.iterative_scan = strict_order;

WITH asked AS MATERIALIZED (
    SELECT entity_id, encoder, embedding
    FROM features.user_features
    WHERE domain = :domain AND (:user IS NULL OR entity_id = :user)
    ORDER BY entity_id, encoder
    LIMIT 1
)
SELECT
    (SELECT entity_id FROM asked) AS "user",
    entity_id AS item,
    attributes ->> 'title' AS title,
    group_name,
    embedding <=> (SELECT embedding FROM asked) AS distance
FROM features.item_features
WHERE domain = :domain AND encoder = (SELECT encoder FROM asked)
ORDER BY embedding <=> (SELECT embedding FROM asked)
LIMIT :k;
