-- Applied by every `dare warehouse upgrade`, after the views.

-- What a query over a domain's interactions selects from: user_id, item_id, moment, value, liked. As a pull, it leaves out
-- what has no user, item, time or value, and takes a time without a zone for UTC. $1, where of_user: the user.
--
-- features.likeness reads the table with its owner's rights. So the table may be of no kind that runs code of somebody
-- who has not got them.
CREATE OR REPLACE FUNCTION knowledge.interaction_query(domain_name text, of_user boolean) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    source knowledge.interaction_source;
    place text;
    missing text;
    of_number boolean;
    filter text := '';
BEGIN
    SELECT * INTO source FROM knowledge.interaction_source AS s WHERE s.domain = domain_name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the warehouse knows no interactions of domain %: its file must name a table in the warehouse''s '
            'own database and have a section [evaluation] with positive_from; then run `dare warehouse upgrade`; '
            'interactions elsewhere can be joined with what `dare features export` writes', quote_literal(domain_name)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    place := format('%I.%I', source.db_schema, source.table_name);
    SELECT string_agg(format('column %I', c.name), ', ') INTO missing
    FROM unnest(ARRAY[source.user_column, source.item_column, source.value_column, source.time_column]) AS c (name)
    WHERE NOT EXISTS (
        SELECT FROM pg_attribute AS a WHERE a.attrelid = to_regclass(place) AND a.attname = c.name AND a.attnum > 0
    );
    IF to_regclass(place) IS NULL OR missing IS NOT NULL THEN
        RAISE EXCEPTION 'the table of interactions % has no %; run `dare source import`, or mend config/%.toml '
            'and run `dare warehouse upgrade`', place, CASE WHEN to_regclass(place) IS NULL THEN 'rows: it is not there'
            ELSE missing END, domain_name USING ERRCODE = 'undefined_table';
    END IF;
    IF EXISTS (
        SELECT FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid JOIN pg_type AS t ON t.oid = a.atttypid
        WHERE c.oid = to_regclass(place) AND NOT pg_has_role(c.relowner, current_user, 'MEMBER') AND (
            c.relkind NOT IN ('r', 'p', 'm') OR c.relrowsecurity
            OR a.attname IN (source.user_column, source.item_column, source.value_column, source.time_column)
            AND NOT pg_has_role(t.typowner, current_user, 'MEMBER')
        )
    ) THEN
        RAISE EXCEPTION '% is no plain table of plain types (but a view, say, or under row security), and its owner has '
            'not the rights of %; name a plain table in config/%.toml, or give it to that role',
            place, current_user, domain_name USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF of_user THEN
        -- Numbers are compared as numbers, so that an index of the column is used.
        SELECT a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype) INTO of_number
        FROM pg_attribute AS a WHERE a.attrelid = to_regclass(place) AND a.attname = source.user_column;
        filter := format('WHERE CAST(%1$I AS text) = $1', source.user_column);
        IF of_number THEN
            filter := filter || format(
                ' AND %I = CASE WHEN $1 ~ ''^-?[0-9]{1,18}$'' THEN CAST($1 AS bigint) END', source.user_column);
        END IF;
    END IF;
    RETURN format(
        'SELECT user_id, item_id, moment, value, value >= %L::double precision AS liked FROM ('
        'SELECT CAST(%I AS text) AS user_id, CAST(%I AS text) AS item_id, %s AS moment, '
        'NULLIF(CAST(%I AS double precision), ''NaN'') AS value FROM %s %s) AS i '
        'WHERE user_id IS NOT NULL AND item_id IS NOT NULL AND value IS NOT NULL AND value <> ALL (%L::double precision[]) '
        'AND moment >= ''0001-01-01 00:00+00'' AND moment < ''10000-01-01 00:00+00''',
        source.positive_from, source.user_column, source.item_column,
        CASE WHEN source.per_second IS NULL THEN format('CAST(%I AS timestamptz)', source.time_column)
        ELSE format(
            'CASE WHEN CAST(%1$I AS numeric) BETWEEN -62135596800::numeric * %2$s AND 253402300800::numeric * %2$s THEN '
            'timestamptz ''1970-01-01 00:00+00'' + '
            'floor(CAST(%1$I AS numeric) * 1000000 / %2$s) * interval ''1 microsecond'' END',
            source.time_column, source.per_second) END,
        source.value_column, place, filter, source.none_values
    );
END $$;

COMMENT ON FUNCTION knowledge.interaction_query IS 'A query of a domain''s interactions, where its file says they are';
