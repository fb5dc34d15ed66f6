"""What evaluations found, which the gate on the verification mode goes by."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE knowledge.evaluation (
            domain text NOT NULL,
            evaluated_at timestamptz NOT NULL,
            model text NOT NULL,
            entities integer NOT NULL,
            seeds integer NOT NULL,
            auc_delta_low double precision NOT NULL,
            auc_delta_high double precision NOT NULL,
            auc_gain double precision NOT NULL,
            auc_gain_low double precision NOT NULL,
            auc_gain_high double precision NOT NULL,
            result jsonb NOT NULL,
            PRIMARY KEY (domain, evaluated_at)
        )
    """)
    op.execute("COMMENT ON TABLE knowledge.evaluation IS 'Whether the features help, as `dare evaluate` measured it'")
    for column, comment in (
        ("auc_delta_low", "AUC with relaxed (2, 0.1) texts minus with strict ones: lower end of the 95% interval"),
        ("auc_gain", "AUC with strict texts minus without knowledge, mean over paired seeds"),
        ("result", "All figures, as `dare evaluate --json` prints them"),
    ):
        op.execute(f"COMMENT ON COLUMN knowledge.evaluation.{column} IS '{comment}'")
