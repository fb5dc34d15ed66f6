"""What changed and what was asked: watermarks, deletions, renderings; a run's plan and what it took."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        ALTER TABLE knowledge.entity
            ADD COLUMN events bigint NOT NULL DEFAULT 0,
            ADD COLUMN deleted_at timestamptz,
            ADD COLUMN content text NOT NULL GENERATED ALWAYS AS (md5(attributes::text)) STORED,
            ADD COLUMN profile text NOT NULL GENERATED ALWAYS AS (md5((attributes - 'history')::text)) STORED
    """)
    # Until the next pull, which has no watermark and reads everything, the history shown stands for all events.
    op.execute("""
        UPDATE knowledge.entity SET events = jsonb_array_length(attributes -> 'history')
        WHERE kind = 'user' AND jsonb_typeof(attributes -> 'history') = 'array'
    """)
    op.execute("ALTER TABLE knowledge.entity ALTER COLUMN events DROP DEFAULT")
    op.execute("COMMENT ON COLUMN knowledge.entity.events IS 'Interactions of the user, or with the item'")
    op.execute(
        "COMMENT ON COLUMN knowledge.entity.deleted_at IS 'When its source row was found gone; null while there'"
    )
    op.execute("COMMENT ON COLUMN knowledge.entity.content IS 'Identifies the attributes'")
    op.execute("COMMENT ON COLUMN knowledge.entity.profile IS 'Identifies the attributes without the history'")

    op.execute("""
        CREATE TABLE knowledge.watermark (
            domain text NOT NULL,
            kind text NOT NULL,
            pulled_to timestamptz NOT NULL,
            PRIMARY KEY (domain, kind),
            CONSTRAINT watermark_kind CHECK (kind IN ('item', 'user'))
        )
    """)
    op.execute("COMMENT ON TABLE knowledge.watermark IS 'Up to when a kind''s source tables are among the entities'")

    op.execute("""
        CREATE TABLE knowledge.rendering (
            domain text NOT NULL,
            kind text NOT NULL,
            entity_id text NOT NULL,
            request_id text NOT NULL,
            settings text NOT NULL,
            content text NOT NULL,
            profile text NOT NULL,
            events bigint NOT NULL,
            PRIMARY KEY (domain, kind, entity_id),
            FOREIGN KEY (domain, kind, entity_id) REFERENCES knowledge.entity ON DELETE CASCADE
        )
    """)
    op.execute("COMMENT ON TABLE knowledge.rendering IS 'What an entity was last asked as, and what its prompt showed'")
    op.execute("COMMENT ON COLUMN knowledge.rendering.settings IS 'Identifies what shapes prompts beside the entity'")
    op.execute("COMMENT ON COLUMN knowledge.rendering.events IS 'The entity''s events when its prompt was rendered'")

    op.execute("""
        ALTER TABLE knowledge.generation_run
            ADD COLUMN plan jsonb,
            ADD COLUMN measured jsonb,
            ADD COLUMN report text
    """)
    op.execute(
        "COMMENT ON COLUMN knowledge.generation_run.plan IS 'Funnel of entities, and what was expected to be spent'"
    )
    op.execute("COMMENT ON COLUMN knowledge.generation_run.measured IS 'What the run spent'")
    op.execute("COMMENT ON COLUMN knowledge.generation_run.report IS 'Path of the run report'")
