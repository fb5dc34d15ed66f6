-- Applied by every `dare warehouse upgrade`, after the views.
CREATE OR REPLACE FUNCTION features.match(
    user_id text, k integer DEFAULT 10, domain text DEFAULT 'movies', group_name text DEFAULT NULL
)
RETURNS TABLE (item text, title text, item_group text, distance double precision)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT entity_id, title, entity_group, distance
    FROM knowledge.nearest_items(domain, 'user', user_id, k, group_name) ORDER BY distance
$$;

COMMENT ON FUNCTION features.match IS
    'The items nearest to a user by cosine distance of their texts'' vectors: k of them, of one group where it is named';
