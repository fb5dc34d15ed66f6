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
    op.execute("CREATE TABLE knowledge.quarantined_text (LIKE knowledge.knowledge)")
    op.execute("""
        ALTER TABLE knowledge.quarantined_text
            DROP COLUMN valid_from, DROP COLUMN valid_to, ADD PRIMARY KEY (request_id)
    """)
    op.execute(
        "COMMENT ON TABLE knowledge.quarantined_text IS 'Every text in quarantine as it was written, for its release'"
    )
