"""Which group model is in force, of each kind of entity in each domain."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE knowledge.group_model (
            domain text NOT NULL,
            kind text NOT NULL,
            version text NOT NULL,
            location text NOT NULL,
            published_at timestamptz NOT NULL,
            PRIMARY KEY (domain, kind),
            CONSTRAINT group_model_kind CHECK (kind IN ('item', 'user'))
        )
    """)
    op.execute("COMMENT ON TABLE knowledge.group_model IS 'The group model in force: what the latest grouping learned'")
    op.execute("COMMENT ON COLUMN knowledge.group_model.location IS 'Root of the pool store that it lies beside'")
