-- Interactions with how alike their item is to what their user had liked before: rows to train a ranking model on, the
-- newest first.
--
-- Point in time, as the query training_join: of the item and of what the user had met counts the knowledge with the newest
-- data_as_of before the interaction. Looked at are the user's newest 50 interactions strictly before it.
--
-- The interactions are the domain's own, from the table that its file names in the warehouse's database. Its section
-- [evaluation] says which are likes.
--
-- :domain text = movies  the domain
-- :limit int = 20  rows at most

SELECT
    r.user_id,
    r.item_id,
    r.value,
    r.moment,
    l.likes,
    l.mean,
    l.max,
    l.leaning,
    l.histogram
FROM (
    SELECT
        CAST({user} AS text) AS user_id,
        CAST({item} AS text) AS item_id,
        {value} AS value,
        {moment} AS moment
    FROM {table}
    WHERE {user} IS NOT NULL AND {item} IS NOT NULL AND {time} IS NOT NULL
    ORDER BY {moment} DESC, 1, 2
    LIMIT :limit
) AS r
CROSS JOIN LATERAL features.likeness(r.user_id, r.item_id, r.moment, :domain) AS l
ORDER BY r.moment DESC, r.user_id, r.item_id;
