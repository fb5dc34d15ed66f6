"""Quarantined texts may be released: their requests are then asked again."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE knowledge.quarantine ADD COLUMN released_at timestamptz")
    op.execute("COMMENT ON COLUMN knowledge.quarantine.released_at IS 'When its request was let be asked again'")
