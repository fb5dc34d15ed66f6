-- Applied by every `dare warehouse upgrade`, after the views.
CREATE OR REPLACE FUNCTION features.as_of(moment timestamptz, domain text DEFAULT 'movies')
RETURNS TABLE (
    kind text,
    entity_id text,
    group_name text,
    text text,
    encoder text,
    embedding vector,
    data_as_of timestamptz,
    available_at timestamptz,
    request_id text,
    form text
)
LANGUAGE sql STABLE AS $$
    WITH seen AS (
        SELECT 'item' AS kind, item_id AS entity_id, request_id, data_as_of, available_at FROM features.item_history
        WHERE domain = as_of.domain AND data_as_of < moment AND (valid_to IS NULL OR valid_to > moment)
        UNION ALL
        SELECT 'user', user_id, request_id, data_as_of, available_at FROM features.user_history
        WHERE domain = as_of.domain AND data_as_of < moment AND (valid_to IS NULL OR valid_to > moment)
    ), newest AS MATERIALIZED (
        SELECT DISTINCT ON (kind, entity_id) kind, entity_id, request_id
        FROM seen ORDER BY kind, entity_id, data_as_of DESC, available_at DESC, request_id
    )
    SELECT newest.kind, newest.entity_id, h.group_name, h.text, h.encoder, h.embedding, h.data_as_of, h.available_at,
        h.request_id, h.form
    FROM newest JOIN (
        SELECT * FROM features.item_history UNION ALL SELECT * FROM features.user_history
    ) AS h USING (request_id)
    WHERE h.domain = as_of.domain
$$;

COMMENT ON FUNCTION features.as_of IS
    'The features of a past moment: of each item and user the text whose prompt saw the most of what happened before it';
