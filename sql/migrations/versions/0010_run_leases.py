"""Whose a run is, what it was asked, and until when somebody is known to be at it."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE knowledge.run_lease (
            run_id text NOT NULL PRIMARY KEY,
            domain text NOT NULL,
            params jsonb NOT NULL,
            owner text,
            since timestamptz NOT NULL,
            expires_at timestamptz NOT NULL
        )
    """)
    op.execute("COMMENT ON TABLE knowledge.run_lease IS 'Who is at a run: one process at a time'")
    for column, comment in (
        ("params", "What the run was asked; JSON as in generation_run"),
        ("owner", "Host, process and a random part; null between two stages"),
        ("since", "Since when the owner has it"),
        ("expires_at", "After this the run counts as given up, and anybody may take it"),
    ):
        op.execute(f"COMMENT ON COLUMN knowledge.run_lease.{column} IS '{comment}'")
