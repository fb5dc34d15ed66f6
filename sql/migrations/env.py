"""What Alembic runs. The connection comes from :mod:`dare_core.warehouse.migrate`, which holds the transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], **context.config.attributes["version_table"])
context.run_migrations()
