"""Pins: which retrieval-pool versions running jobs use, so that none of them is deleted."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE knowledge.pool_pin (
            domain text NOT NULL,
            kind text NOT NULL,
            holder text NOT NULL,
            version text NOT NULL,
            pinned_at timestamptz NOT NULL,
            PRIMARY KEY (domain, kind, holder),
            FOREIGN KEY (domain, kind, version) REFERENCES knowledge.pool_version
        )
    """)
    op.execute("COMMENT ON TABLE knowledge.pool_pin IS 'Pool versions in use; they are kept until the holder is done'")
    op.execute("COMMENT ON COLUMN knowledge.pool_pin.holder IS 'The run that drafts from the version'")
