"""Who was forgotten, so that no pull takes them in again."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE knowledge.forgotten (
            domain text NOT NULL,
            kind text NOT NULL,
            entity text NOT NULL,
            forgotten_at timestamptz NOT NULL,
            PRIMARY KEY (domain, kind, entity),
            CONSTRAINT forgotten_kind CHECK (kind IN ('item', 'user'))
        )
    """)
    op.execute("COMMENT ON TABLE knowledge.forgotten IS 'Entities that are never pulled again; see `dare forget`'")
    op.execute("COMMENT ON COLUMN knowledge.forgotten.entity IS 'SHA-256 of domain/kind/id: the id itself is not kept'")
