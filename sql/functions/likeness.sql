-- Applied by every `dare warehouse upgrade`, after the views.

-- dare_core/features/likeness.py is the same over arrays. There are 10 tiers and 50 interactions; 0.1 is its
-- TEMPERATURE, 10 (in the leaning) its SHRINKAGE.
--
-- Point in time: looked at are the newest 50 interactions strictly before the moment (of one moment, those of greater item
-- ids, by bytes; of one item, too, likes); the item and what was met have the texts that features.as_of shows at the
-- moment, and those are compared whose vector, by the encoder in force, is there and made of the same as the item's. The
-- product of two vectors of length 1 is their cosine; it is a real, as in numpy, so that both put it into the same tier.
--
-- The domain and encoder are written into the statement: only so it looks at their partitions alone.
-- $1: user, $2: moment, $3: item.
CREATE OR REPLACE FUNCTION knowledge.likeness_query(domain_name text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    seen text := format(
        'SELECT e.embedding, e.form FROM (
            SELECT request_id FROM knowledge.knowledge
            WHERE domain = %1$L AND kind = ''item'' AND entity_id = %%s AND data_as_of < $2
                AND (valid_to IS NULL OR valid_to > $2)
            ORDER BY data_as_of DESC, available_at DESC, request_id LIMIT 1
        ) AS k JOIN knowledge.knowledge_embedding AS e
            ON e.domain = %1$L AND e.request_id = k.request_id AND e.encoder = %2$L',
        domain_name, (SELECT name FROM knowledge.encoder WHERE in_force)
    );
    tiers text := (
        SELECT string_agg(format('count(*) FILTER (WHERE liked AND tier = %s)', tier), ', ' ORDER BY tier)
        FROM generate_series(0, 9) AS tier
    );
BEGIN
    RETURN format(
        'SELECT CAST(count(*) FILTER (WHERE liked) AS integer), avg(cosine) FILTER (WHERE liked),
            CAST(max(cosine) FILTER (WHERE liked) AS double precision),
            coalesce(count(*) / CAST(count(*) + 10 AS double precision) * (sum(w * y) / sum(w) - avg(y)), 0),
            CAST(ARRAY[%s] AS integer[])
        FROM (
            SELECT liked, cosine, exp((CAST(cosine AS double precision) - 1) / 0.1) AS w,
                CASE WHEN liked THEN CAST(1 AS double precision) ELSE 0 END AS y,
                least(greatest(floor(cosine * CAST(10 AS real)), 0), 9) AS tier
            FROM (%s) AS target
            CROSS JOIN (
                SELECT item_id, liked FROM (%s) AS i WHERE moment < $2
                ORDER BY moment DESC, item_id COLLATE "C" DESC, liked DESC LIMIT 50
            ) AS newest
            CROSS JOIN LATERAL (%s) AS known
            CROSS JOIN LATERAL (SELECT CAST(-(known.embedding <#> target.embedding) AS real) AS cosine) AS product
            WHERE known.form = target.form
        ) AS compared',
        tiers, format(seen, '$3'), knowledge.interaction_query(domain_name, true), format(seen, 'newest.item_id')
    );
END $$;

COMMENT ON FUNCTION knowledge.likeness_query IS 'What features.likeness executes';

CREATE OR REPLACE FUNCTION features.likeness(
    user_id text, item_id text, moment timestamptz DEFAULT now(), domain text DEFAULT 'movies'
)
RETURNS TABLE (
    likes integer, mean double precision, max double precision, leaning double precision, histogram integer[]
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' AS $$
BEGIN
    RETURN QUERY EXECUTE knowledge.likeness_query(domain) USING user_id, moment, item_id;
END $$;

COMMENT ON FUNCTION features.likeness IS
    'How alike an item is to what a user liked before a moment: how many likes there were, the mean and the largest cosine '
    '(null without likes), by how much more often the user liked what is like the item than what is not (-1 to 1), and how '
    'many cosines of likes lie in each tenth of 0 to 1';
