-- Interactions with the features that their moment allows: rows to train a ranking model on, the newest first.
--
-- Point in time: an interaction at t takes of its user and of its item the knowledge with the newest data_as_of before t,
-- texts that were replaced since included. "Before" is strict, since a prompt whose data_as_of is t shows the interaction
-- itself: the label would leak. What counts is data_as_of and not available_at: knowledge of old events is written today,
-- from what was known then. Where the log is as young as the knowledge, `available_at <= rated_at` narrows the join to
-- what a model could really have been served with.
--
-- The interactions are the domain's own, from the table that its file names in the warehouse's database.
--
-- Interactions before both sides' first knowledge are left out; so are, with knowledge of all that happened, a user's
-- rows altogether: `as_of` on the runs that write knowledge keeps events back for training.
--
-- similarity is one feature made of both vectors, null where they are of different forms; select u.embedding and i.embedding to train on them.
--
-- :domain text = movies  the domain
-- :limit int = 20  rows at most

SELECT
    CAST(r.{user} AS text) AS user_id,
    CAST(r.{item} AS text) AS item_id,
    r.{value} AS rating,
    r.{time} AS rated_at,
    u.group_name AS user_group,
    i.group_name AS item_group,
    u.data_as_of AS user_data_as_of,
    i.data_as_of AS item_data_as_of,
    CASE WHEN u.form = i.form THEN 1 - (u.embedding <=> i.embedding) END AS similarity
FROM {table} AS r
LEFT JOIN LATERAL (
    SELECT * FROM features.user_history
    WHERE domain = :domain AND user_id = CAST(r.{user} AS text)
        AND data_as_of < r.{time} AND (valid_to IS NULL OR valid_to > r.{time})
    ORDER BY data_as_of DESC, available_at DESC, request_id
    LIMIT 1
) AS u ON true
LEFT JOIN LATERAL (
    SELECT * FROM features.item_history
    WHERE domain = :domain AND item_id = CAST(r.{item} AS text)
        AND data_as_of < r.{time} AND (valid_to IS NULL OR valid_to > r.{time})
    ORDER BY data_as_of DESC, available_at DESC, request_id
    LIMIT 1
) AS i ON true
WHERE u.user_id IS NOT NULL OR i.item_id IS NOT NULL
ORDER BY r.{time} DESC, user_id, item_id
LIMIT :limit;
