"""Evaluations of some arms alone, and of int8, which the gate on it goes by."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in ("auc_delta_low", "auc_delta_high", "auc_gain", "auc_gain_low", "auc_gain_high"):
        op.execute(f"ALTER TABLE knowledge.evaluation ALTER COLUMN {column} DROP NOT NULL")
    for column, end in (("int8_auc_low", "lower"), ("int8_auc_high", "upper")):
        op.execute(f"ALTER TABLE knowledge.evaluation ADD COLUMN {column} double precision")
        op.execute(
            f"COMMENT ON COLUMN knowledge.evaluation.{column} IS "
            f"'AUC with strict int8 texts minus with strict ones: {end} end of the 95% interval; null: not measured'"
        )
