"""Alembic revisions, as package data: run by inferno.storage.store, never by a configuration file."""
