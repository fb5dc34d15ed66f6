"""Partitions by domain, encoders side by side, and the roles of those who load and of those who read."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _roles()
    for schema in ("source", "staging", "partitions"):
        op.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    op.execute("COMMENT ON SCHEMA staging IS 'Rows on their way in: tables that live as long as one load'")
    op.execute("COMMENT ON SCHEMA partitions IS 'The parts of knowledge.knowledge and knowledge.knowledge_embedding'")
    op.execute("DROP VIEW IF EXISTS features.item_features, features.user_features")
    _encoders()
    _partition()
    _index()
    _validity_of_vectors()


def _roles() -> None:
    """Roles belong to the server: another database, or the administrator, may have created them."""
    for role in ("dare_loader", "dare_reader"):
        op.execute(f"""
            DO $$ BEGIN
                IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN
                    CREATE ROLE {role} NOLOGIN;
                END IF;
            EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
            END $$
        """)


def _encoders() -> None:
    op.execute("""
        CREATE TABLE knowledge.encoder (
            name text NOT NULL PRIMARY KEY,
            width integer NOT NULL,
            in_force boolean NOT NULL,
            number integer NOT NULL UNIQUE,
            CONSTRAINT encoder_width CHECK (width BETWEEN 1 AND 4000)
        )
    """)
    op.execute("CREATE UNIQUE INDEX encoder_one_in_force ON knowledge.encoder (in_force) WHERE in_force")
    op.execute("COMMENT ON TABLE knowledge.encoder IS 'What vectors are of: the encoder in force is served'")
    op.execute("COMMENT ON COLUMN knowledge.encoder.width IS 'Dimensions of its vectors; HNSW takes 4000 at most'")
    op.execute("COMMENT ON COLUMN knowledge.encoder.number IS 'Stands for it in the names of partitions'")
    op.execute("""
        INSERT INTO knowledge.encoder (name, width, in_force, number)
        SELECT encoder, 384, row_number() OVER most = 1, row_number() OVER most
        FROM knowledge.knowledge_embedding GROUP BY encoder
        WINDOW most AS (ORDER BY count(*) DESC, encoder)
    """)
    op.execute("""
        CREATE FUNCTION knowledge.add_domain(domain_name text) RETURNS void
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
        DECLARE
            -- The longest names would be cut off, and might then be the same.
            suffix text := CASE WHEN length(domain_name) <= 40 THEN domain_name
                ELSE left(domain_name, 31) || '_' || left(md5(domain_name), 8) END;
            wide text;
            known record;
        BEGIN
            IF to_regclass(format('partitions.%I', 'knowledge_' || suffix)) IS NULL THEN
                -- Rows stay in their page while it takes them: compressing token ids and moving them elsewhere costs a
                -- load more time than writing them, and saves no space.
                EXECUTE format('CREATE TABLE partitions.%I PARTITION OF knowledge.knowledge FOR VALUES IN (%L) '
                    'WITH (toast_tuple_target = 8160)', 'knowledge_' || suffix, domain_name);
                FOREACH wide IN ARRAY ARRAY['prompt', 'prompt_token_ids', 'text', 'token_ids'] LOOP
                    EXECUTE format('ALTER TABLE partitions.%I ALTER COLUMN %I SET STATISTICS 0',
                        'knowledge_' || suffix, wide);
                END LOOP;
                EXECUTE format('CREATE TABLE partitions.%I PARTITION OF knowledge.knowledge_embedding '
                    'FOR VALUES IN (%L) PARTITION BY LIST (encoder)', 'vectors_' || suffix, domain_name);
            END IF;
            FOR known IN SELECT name, number FROM knowledge.encoder LOOP
                IF to_regclass(format('partitions.%I', format('encoded_%s_%s', suffix, known.number))) IS NULL THEN
                    EXECUTE format('CREATE TABLE partitions.%I PARTITION OF partitions.%I FOR VALUES IN (%L)',
                        format('encoded_%s_%s', suffix, known.number), 'vectors_' || suffix, known.name);
                    EXECUTE format('ALTER TABLE partitions.%I ALTER COLUMN embedding SET STATISTICS 0',
                        format('encoded_%s_%s', suffix, known.number));
                END IF;
            END LOOP;
        END $$
    """)
    op.execute("COMMENT ON FUNCTION knowledge.add_domain IS 'Make the partitions that rows of a domain need'")


def _partition() -> None:
    op.execute("ALTER TABLE knowledge.knowledge_embedding RENAME TO whole_embedding")
    op.execute("ALTER TABLE knowledge.knowledge RENAME TO whole_knowledge")
    op.execute("""
        CREATE TABLE knowledge.knowledge (
            LIKE knowledge.whole_knowledge INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING COMMENTS
        ) PARTITION BY LIST (domain)
    """)
    op.execute("""
        CREATE TABLE knowledge.knowledge_embedding (
            request_id text NOT NULL,
            encoder text NOT NULL,
            embedding vector NOT NULL,
            domain text NOT NULL,
            kind text NOT NULL,
            is_valid boolean NOT NULL
        ) PARTITION BY LIST (domain)
    """)
    for column in ("prompt", "prompt_token_ids", "text", "token_ids"):  # nobody asks which is how frequent
        op.execute(f"ALTER TABLE knowledge.knowledge ALTER COLUMN {column} SET STATISTICS 0")
    op.execute("SELECT knowledge.add_domain(domain) FROM (SELECT DISTINCT domain FROM knowledge.whole_knowledge) AS d")
    op.execute("ALTER TABLE knowledge.knowledge_embedding ALTER COLUMN embedding SET STATISTICS 0")
    op.execute("INSERT INTO knowledge.knowledge SELECT * FROM knowledge.whole_knowledge")
    op.execute("""
        INSERT INTO knowledge.knowledge_embedding (request_id, encoder, embedding, domain, kind, is_valid)
        SELECT request_id, encoder, embedding, domain, kind, valid_to IS NULL
        FROM knowledge.whole_embedding JOIN knowledge.whole_knowledge USING (request_id)
    """)
    op.execute("DROP TABLE knowledge.whole_embedding, knowledge.whole_knowledge")
    op.execute(
        "COMMENT ON TABLE knowledge.knowledge IS 'Every text ever loaded; the valid one of an entity has no valid_to'"
    )
    op.execute("COMMENT ON TABLE knowledge.knowledge_embedding IS 'A text''s vector, one per encoder'")
    op.execute("COMMENT ON COLUMN knowledge.knowledge_embedding.is_valid IS 'Whether its text has no valid_to'")


def _index() -> None:
    # request_id first: it is looked up alone, too, and then in every partition.
    op.execute("ALTER TABLE knowledge.knowledge ADD CONSTRAINT knowledge_pkey PRIMARY KEY (request_id, domain)")
    op.execute("""
        CREATE UNIQUE INDEX knowledge_one_valid ON knowledge.knowledge (domain, kind, entity_id) WHERE valid_to IS NULL
    """)
    op.execute("""
        CREATE INDEX knowledge_point_in_time ON knowledge.knowledge (domain, kind, entity_id, data_as_of DESC)
    """)
    op.execute("""
        ALTER TABLE knowledge.knowledge_embedding
            ADD CONSTRAINT knowledge_embedding_pkey PRIMARY KEY (request_id, domain, encoder)
    """)
    op.execute("""
        CREATE VIEW knowledge.vector_partition AS
        SELECT part.inhrelid AS partition, leaf.relname AS name, e.name AS encoder, e.width,
            format('%s_nearest', leaf.relname) AS index_name,
            to_regclass(format('partitions.%I', format('%s_nearest', leaf.relname))) IS NOT NULL AS is_indexed,
            pg_get_expr(whole.relpartbound, whole.oid) AS of_domain
        FROM pg_inherits AS domain
        JOIN pg_class AS whole ON whole.oid = domain.inhrelid
        JOIN pg_inherits AS part ON part.inhparent = domain.inhrelid
        JOIN pg_class AS leaf ON leaf.oid = part.inhrelid
        JOIN knowledge.encoder AS e ON e.number = substring(leaf.relname FROM '_([0-9]+)$')::integer
        WHERE domain.inhparent = 'knowledge.knowledge_embedding'::regclass
    """)
    op.execute("COMMENT ON VIEW knowledge.vector_partition IS 'Where the vectors of a domain and encoder lie'")
    # Only what is searched is in the index: the valid vectors of items, in half precision.
    op.execute("""
        CREATE FUNCTION knowledge.index_vectors() RETURNS integer
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
        DECLARE
            part record;
            built integer := 0;
        BEGIN
            FOR part IN SELECT * FROM knowledge.vector_partition WHERE NOT is_indexed LOOP
                EXECUTE format(
                    'CREATE INDEX %I ON partitions.%I USING hnsw ((embedding::halfvec(%s)) halfvec_cosine_ops) '
                    'WHERE is_valid AND kind = ''item''', part.index_name, part.name, part.width);
                built := built + 1;
            END LOOP;
            RETURN built;
        END $$
    """)
    op.execute("COMMENT ON FUNCTION knowledge.index_vectors IS 'Build the vectors'' indexes that are not there'")
    op.execute("""
        CREATE FUNCTION knowledge.prepare_load(domain_name text, items bigint) RETURNS void
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
        DECLARE
            part record;
        BEGIN
            PERFORM knowledge.add_domain(domain_name);
            IF items < 10000 OR items < (
                SELECT count(*) FROM knowledge.knowledge
                WHERE domain = domain_name AND kind = 'item' AND valid_to IS NULL
            ) THEN
                RETURN;
            END IF;
            FOR part IN
                SELECT * FROM knowledge.vector_partition
                WHERE is_indexed AND of_domain = format('FOR VALUES IN (%L)', domain_name)
            LOOP
                EXECUTE format('DROP INDEX partitions.%I', part.index_name);
            END LOOP;
        END $$
    """)
    op.execute("""
        COMMENT ON FUNCTION knowledge.prepare_load IS
        'Make a domain''s partitions; for a load larger than what is there, without vector indexes, to build afterwards'
    """)
    op.execute("""
        CREATE FUNCTION knowledge.analyse_knowledge() RETURNS void
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
        SET default_statistics_target = 30 AS $$
        BEGIN
            ANALYZE knowledge.knowledge, knowledge.knowledge_embedding;
        END $$
    """)
    op.execute("COMMENT ON FUNCTION knowledge.analyse_knowledge IS 'Fresh statistics, which only an owner may make'")
    op.execute("SELECT knowledge.index_vectors()")


def _validity_of_vectors() -> None:
    # In place of a foreign key, which would lock, and so write anew, every text for its vector: a third of a load.
    op.execute("""
        CREATE FUNCTION knowledge.follow_deletion() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
        BEGIN
            DELETE FROM knowledge.knowledge_embedding AS e USING gone
            WHERE e.domain = gone.domain AND e.request_id = gone.request_id;
            RETURN NULL;
        END $$
    """)
    op.execute("""
        CREATE TRIGGER follow_deletion AFTER DELETE ON knowledge.knowledge
        REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION knowledge.follow_deletion()
    """)
    op.execute("""
        CREATE FUNCTION knowledge.follow_validity() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
        BEGIN
            UPDATE knowledge.knowledge_embedding AS e SET is_valid = changed.valid_to IS NULL FROM changed
            WHERE e.domain = changed.domain AND e.request_id = changed.request_id
                AND e.is_valid <> (changed.valid_to IS NULL);
            RETURN NULL;
        END $$
    """)
    op.execute("""
        CREATE TRIGGER follow_validity AFTER UPDATE ON knowledge.knowledge
        REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION knowledge.follow_validity()
    """)
