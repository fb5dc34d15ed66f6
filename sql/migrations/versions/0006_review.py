"""Quarantined texts are kept whole, so that a person may release one as knowledge."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE knowledge.quarantine ADD COLUMN released_by text")
    op.execute(
        "COMMENT ON COLUMN knowledge.quarantine.released_by IS 'Who released the text as knowledge; null: nobody did'"
    )
    op.execute("CREATE INDEX quarantine_entity ON knowledge.quarantine (domain, kind, entity_id)")
    op.execute("CREATE INDEX quarantine_newest ON knowledge.quarantine (quarantined_at)")
    op.execute("""
        CREATE TABLE knowledge.quarantined_text (
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
            seconds double precision NOT NULL
        )
    """)
    op.execute(
        "COMMENT ON TABLE knowledge.quarantined_text IS 'Every text in quarantine as it was written, for its release'"
    )
