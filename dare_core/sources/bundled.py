"""The data and the model that come with the platform, made ready for a first run."""

from sqlalchemy import Engine, inspect

from dare_core import models
from dare_core.config.settings import Settings
from dare_core.sources.importer import import_tables
from dare_core.sources.movielens import read_movielens
from dare_core.warehouse.migrate import upgrade


def prepare(settings: Settings, engine: Engine) -> None:
    """What ``refresh_knowledge`` needs to run on MovieLens: the current schema, the source tables, the model."""
    upgrade(engine)
    models.locate(settings)
    if not inspect(engine).has_table("ratings", schema="source"):
        import_tables(engine, read_movielens())
