-- Applied by every `dare warehouse upgrade`, after the views.

-- The width of vectors, and the partition, are written into the statement: only so it can use the partition's index.
-- $1: vector, $2: ids to leave out, $3: group or null, $4: how many, $5: form of the vector, which theirs must have.
CREATE OR REPLACE FUNCTION knowledge.nearest_query(domain_name text, exact boolean) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT format(
        'SELECT k.entity_id, n.attributes ->> ''title'', n.group_name, e.embedding::halfvec(%1$s) <=> $1::halfvec(%1$s)
        FROM knowledge.knowledge_embedding AS e
        JOIN knowledge.knowledge AS k ON k.domain = %2$L AND k.request_id = e.request_id
        JOIN knowledge.entity AS n ON n.domain = %2$L AND n.kind = ''item'' AND n.entity_id = k.entity_id
        WHERE e.domain = %2$L AND e.encoder = %3$L AND e.is_valid AND e.kind = ''item'' AND e.form = $5
            AND k.entity_id <> ALL($2) AND ($3 IS NULL OR n.group_name = $3)
        ORDER BY (e.embedding::halfvec(%1$s) <=> $1::halfvec(%1$s)) %4$s LIMIT $4',
        width, domain_name, name, CASE WHEN exact THEN '+ 0' END
    )
    FROM knowledge.encoder WHERE in_force
$$;

COMMENT ON FUNCTION knowledge.nearest_query IS 'What knowledge.nearest_items executes';

-- Filters are applied while the index is scanned. Where that ends, by its limits, before there are k rows, the rest is
-- looked for in all rows.
CREATE OR REPLACE FUNCTION knowledge.nearest_items(
    domain_name text, kind_asked text, id_asked text, k integer, group_asked text
)
RETURNS TABLE (entity_id text, title text, entity_group text, distance double precision)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, public, pg_temp
SET hnsw.iterative_scan = strict_order SET hnsw.ef_search = 120 AS $$
#variable_conflict use_column
DECLARE
    asked vector;
    form_asked text;
    seen text[] := CASE WHEN kind_asked = 'item' THEN ARRAY[id_asked] ELSE '{}' END;
    found integer := 0;
BEGIN
    SELECT e.embedding, e.form INTO asked, form_asked
    FROM knowledge.encoder AS c
    JOIN knowledge.knowledge AS t
        ON t.domain = domain_name AND t.kind = kind_asked AND t.entity_id = id_asked AND t.valid_to IS NULL
    JOIN knowledge.knowledge_embedding AS e
        ON e.domain = domain_name AND e.request_id = t.request_id AND e.encoder = c.name
    WHERE c.in_force;
    IF asked IS NULL THEN
        RETURN;
    END IF;
    FOR entity_id, title, entity_group, distance IN
        EXECUTE knowledge.nearest_query(domain_name, false) USING asked, seen, group_asked, k, form_asked
    LOOP
        found := found + 1;
        seen := seen || entity_id;
        RETURN NEXT;
    END LOOP;
    IF found < k THEN
        RETURN QUERY EXECUTE knowledge.nearest_query(domain_name, true)
            USING asked, seen, group_asked, k - found, form_asked;
    END IF;
END $$;

COMMENT ON FUNCTION knowledge.nearest_items IS
    'The items whose valid vectors, by the encoder in force and in the same form, are nearest to that of an item or user';
