"""One store per test, over SQLite and over a real PostgreSQL."""

from tests.stores import postgres_server, store, store_url  # noqa: F401
