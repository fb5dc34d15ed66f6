"""What a vector is made of, and where the likes of a domain are found."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE knowledge.knowledge_embedding ADD COLUMN form text NOT NULL DEFAULT 'answer'")
    op.execute("ALTER TABLE knowledge.knowledge_embedding ALTER COLUMN form DROP DEFAULT")
    op.execute(
        "COMMENT ON COLUMN knowledge.knowledge_embedding.form IS "
        "'What the vector is made of: answer, attributes+answer or history+answer'"
    )
    # The function returns another column now; the upgrade creates it again.
    op.execute("DROP FUNCTION IF EXISTS features.as_of(timestamptz, text)")
    op.execute("""
        CREATE TABLE knowledge.interaction_source (
            domain text NOT NULL PRIMARY KEY,
            db_schema text NOT NULL,
            table_name text NOT NULL,
            user_column text NOT NULL,
            item_column text NOT NULL,
            value_column text NOT NULL,
            time_column text NOT NULL,
            per_second bigint,
            positive_from double precision NOT NULL,
            none_values double precision[] NOT NULL
        )
    """)
    op.execute(
        "COMMENT ON TABLE knowledge.interaction_source IS 'Where the interactions of a domain are in this database'"
    )
    for column, comment in (
        ("per_second", "What the time column counts from 1970 on, in a second; null where it holds times"),
        ("positive_from", "An interaction with this value or a larger one is a like"),
        ("none_values", "Values that mean none: such an interaction is left out"),
    ):
        op.execute(f"COMMENT ON COLUMN knowledge.interaction_source.{column} IS '{comment}'")
