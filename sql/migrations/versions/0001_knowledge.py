"""The first tables: entities, the knowledge written of them, its embeddings, retrieval pools, runs and quarantine."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE SCHEMA IF NOT EXISTS features")
    op.execute("""
        CREATE TABLE knowledge.entity (
            domain text NOT NULL,
            kind text NOT NULL,
            entity_id text NOT NULL,
            group_name text NOT NULL,
            attributes jsonb NOT NULL,
            data_as_of timestamptz NOT NULL,
            updated_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (domain, kind, entity_id),
            CONSTRAINT entity_kind CHECK (kind IN ('item', 'user'))
        )
    """)
    op.execute("COMMENT ON TABLE knowledge.entity IS 'One user or item as the source last described it'")
    op.execute("COMMENT ON COLUMN knowledge.entity.group_name IS 'Retrieval-pool group'")
    op.execute("COMMENT ON COLUMN knowledge.entity.data_as_of IS 'Newest source event that the attributes show'")
    op.execute("COMMENT ON COLUMN knowledge.entity.updated_at IS 'When this row last changed'")

    op.execute("""
        CREATE TABLE knowledge.knowledge (
            request_id text NOT NULL PRIMARY KEY,
            domain text NOT NULL,
            kind text NOT NULL,
            entity_id text NOT NULL,
            group_name text NOT NULL,
            prompt text NOT NULL,
            prompt_token_ids integer[] NOT NULL,
            dropped_history integer NOT NULL,
            epoch integer NOT NULL,
            data_as_of timestamptz NOT NULL,
            text text NOT NULL,
            token_ids integer[] NOT NULL,
            text_hash text NOT NULL,
            finish_reason text NOT NULL,
            framework text NOT NULL,
            model text NOT NULL,
            tokenizer_hash text NOT NULL,
            verification text NOT NULL,
            top_k integer NOT NULL,
            min_prob double precision NOT NULL,
            max_new_tokens integer NOT NULL,
            pool_version text,
            run_id text NOT NULL,
            available_at timestamptz NOT NULL,
            prompt_tokens integer NOT NULL,
            new_tokens integer NOT NULL,
            steps integer NOT NULL,
            drafted integer NOT NULL,
            accepted integer NOT NULL,
            relaxed integer NOT NULL,
            seconds double precision NOT NULL,
            valid_from timestamptz NOT NULL,
            valid_to timestamptz,
            CONSTRAINT knowledge_kind CHECK (kind IN ('item', 'user')),
            CONSTRAINT knowledge_verification CHECK (verification IN ('strict', 'relaxed'))
        )
    """)
    op.execute("""
        CREATE UNIQUE INDEX knowledge_one_valid ON knowledge.knowledge (domain, kind, entity_id) WHERE valid_to IS NULL
    """)
    op.execute("""
        CREATE INDEX knowledge_point_in_time ON knowledge.knowledge (domain, kind, entity_id, data_as_of DESC)
    """)
    op.execute(
        "COMMENT ON TABLE knowledge.knowledge IS 'Every text ever loaded; the valid one of an entity has no valid_to'"
    )
    op.execute("COMMENT ON COLUMN knowledge.knowledge.data_as_of IS 'Newest source event that the prompt could see'")
    op.execute(
        "COMMENT ON COLUMN knowledge.knowledge.available_at IS 'When the text was written: no model saw it before'"
    )
    op.execute("COMMENT ON COLUMN knowledge.knowledge.valid_to IS 'When the entity''s next text replaced this one'")

    op.execute("""
        CREATE TABLE knowledge.knowledge_embedding (
            request_id text NOT NULL REFERENCES knowledge.knowledge ON DELETE CASCADE,
            encoder text NOT NULL,
            embedding vector(384) NOT NULL,
            PRIMARY KEY (request_id, encoder)
        )
    """)
    op.execute("""
        CREATE INDEX knowledge_embedding_nearest
        ON knowledge.knowledge_embedding USING hnsw (embedding vector_cosine_ops)
    """)
    op.execute("COMMENT ON TABLE knowledge.knowledge_embedding IS 'A text''s vector, one per encoder'")

    op.execute("""
        CREATE TABLE knowledge.pool_version (
            domain text NOT NULL,
            kind text NOT NULL,
            version text NOT NULL,
            location text NOT NULL,
            model text NOT NULL,
            tokenizer_hash text NOT NULL,
            groups integer NOT NULL,
            texts bigint NOT NULL,
            tokens bigint NOT NULL,
            is_current boolean NOT NULL,
            created_at timestamptz NOT NULL,
            PRIMARY KEY (domain, kind, version),
            CONSTRAINT pool_version_kind CHECK (kind IN ('item', 'user'))
        )
    """)
    op.execute("CREATE UNIQUE INDEX pool_version_one_current ON knowledge.pool_version (domain, kind) WHERE is_current")
    op.execute(
        "COMMENT ON TABLE knowledge.pool_version IS 'Published retrieval pools; new runs draft from the current one'"
    )

    op.execute("""
        CREATE TABLE knowledge.generation_run (
            run_id text NOT NULL PRIMARY KEY,
            domain text NOT NULL,
            state text NOT NULL,
            params jsonb NOT NULL,
            model text NOT NULL,
            started_at timestamptz NOT NULL,
            finished_at timestamptz,
            planned bigint NOT NULL,
            generated bigint,
            failed bigint,
            quarantined bigint,
            loaded bigint,
            new_tokens bigint,
            steps bigint,
            seconds double precision,
            CONSTRAINT generation_run_state CHECK (state IN ('planned', 'failed', 'loaded'))
        )
    """)
    op.execute("COMMENT ON TABLE knowledge.generation_run IS 'One run of the pipeline and what came of it'")

    op.execute("""
        CREATE TABLE knowledge.quarantine (
            request_id text NOT NULL,
            rule text NOT NULL,
            domain text NOT NULL,
            kind text NOT NULL,
            entity_id text NOT NULL,
            run_id text NOT NULL,
            value text,
            text text NOT NULL,
            quarantined_at timestamptz NOT NULL,
            PRIMARY KEY (request_id, rule),
            CONSTRAINT quarantine_kind CHECK (kind IN ('item', 'user'))
        )
    """)
    op.execute(
        "COMMENT ON TABLE knowledge.quarantine IS 'Texts that failed a validation rule and never become features'"
    )
