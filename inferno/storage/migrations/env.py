"""Alembic's entry: runs revisions over the connection that inferno.storage.store hands in."""

from alembic import context

from inferno.storage.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata)
context.run_migrations()
