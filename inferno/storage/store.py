"""The one adapter to the database: connections, transactions, migrations, and what a lost database means.

SQLite by default (WAL, full sync, foreign keys, one writer at a time: transactions that write begin IMMEDIATE and
wait up to the busy timeout); PostgreSQL by URL, where writes take one advisory lock so that checks such as "the last
admin" hold there too. Statements are SQLAlchemy Core with bound parameters only. Every failure of the database
leaves here as ApiError(store_unavailable): whoever asked must refuse.

Front workers, the supervisor and commands each hold a Store of their own. Knows nothing of what rows mean.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from ..errors import ApiError, ConfigError, StartError

HEAD_REVISION = "0002"
BUSY_TIMEOUT_MS = 5000
_WRITE_LOCK = 0x1F3E_1007  # advisory lock number of our writers on PostgreSQL
_MIGRATIONS = Path(__file__).parent / "migrations"


class Conflict(Exception):
    """A unique or foreign key constraint refused the change."""


def async_url(url: str) -> str:
    """Return the URL with the asynchronous driver. Raises ConfigError on another database."""
    if url.startswith("sqlite:///"):
        return "sqlite+aiosqlite:///" + url.removeprefix("sqlite:///")
    for prefix in ("postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+asyncpg://" + url.removeprefix(prefix)
    raise ConfigError("storage.url: expected sqlite:///… or postgresql://…")


class Store:
    """Transactions over one database. Make it, `await open()`, `await close()`."""

    def __init__(self, url: str, *, num_readers: int = 4) -> None:
        self._url = url
        self._is_sqlite = url.startswith("sqlite:")
        self._reader: AsyncEngine
        self._writer: AsyncEngine
        self._write_lock = asyncio.Lock()
        if self._is_sqlite:
            self._reader = self._sqlite(num_readers, "BEGIN")
            self._writer = self._sqlite(1, "BEGIN IMMEDIATE")
        else:
            try:
                target = make_url(async_url(url))
            except SQLAlchemyError:
                raise ConfigError("storage.url: not a database URL") from None
            self._reader = self._writer = create_async_engine(
                target,
                pool_size=num_readers,
                max_overflow=2,
                pool_timeout=5,
                pool_pre_ping=True,
                connect_args={"timeout": 5, "command_timeout": 10},
            )

    def _sqlite(self, pool_size: int, begin: str) -> AsyncEngine:
        engine = create_async_engine(
            async_url(self._url),
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=5,
            connect_args={"timeout": BUSY_TIMEOUT_MS / 1000},
        )

        @event.listens_for(engine.sync_engine, "do_connect")
        def probe(_dialect: Any, _record: Any, arguments: list[str], _options: Any) -> None:
            # a file that does not open fails here: the driver would leave a thread behind that outlives the loop
            sqlite3.connect(arguments[0]).close()

        @event.listens_for(engine.sync_engine, "connect")
        def configure(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # we begin ourselves: the driver would begin too late
            cursor = connection.cursor()
            try:
                for pragma in (
                    f"busy_timeout={BUSY_TIMEOUT_MS}",
                    "journal_mode=WAL",
                    "synchronous=FULL",
                    "foreign_keys=ON",
                    "trusted_schema=OFF",
                ):
                    cursor.execute(f"PRAGMA {pragma}")
                cursor.close()
            except BaseException:
                connection.close()  # the pool has not taken it yet, and it owns a thread
                raise

        @event.listens_for(engine.sync_engine, "begin")
        def start(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

        return engine

    def path(self) -> Path | None:
        """Return the file of a SQLite store."""
        return Path(self._url.removeprefix("sqlite:///")) if self._is_sqlite else None

    async def open(self, *, migrate: bool = False) -> None:
        """Check the schema's version; `migrate` (supervisor and commands only) brings it up to date first.

        Raises StartError when the schema is of another version or the database cannot be reached.
        """
        path = self.path()
        try:
            if path is not None and migrate:
                _private_file(path)
            if migrate:
                async with self._writer.begin() as connection:
                    if not self._is_sqlite:
                        await connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _WRITE_LOCK})
                    await connection.run_sync(upgrade)
            async with self._reader.connect() as connection:
                found = await connection.run_sync(revision)
        except StartError:
            await self.close()
            raise
        except (OSError, SQLAlchemyError, sqlite3.Error, TimeoutError) as error:
            await self.close()
            raise StartError(f"the database cannot be used ({_kind(error)})") from None
        if found != HEAD_REVISION:
            await self.close()
            raise StartError(
                f"the database is of schema {found or 'none'}; this version needs {HEAD_REVISION}"
            )

    async def close(self) -> None:
        await self._reader.dispose()
        if self._writer is not self._reader:
            await self._writer.dispose()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A consistent view. Raises ApiError(store_unavailable)."""
        with _translated():
            async with self._reader.connect() as connection, connection.begin():
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that commits when the block ends and rolls back when it raises; one at a time.

        Raises Conflict and ApiError(store_unavailable).
        """
        with _translated():
            async with self._write_lock, self._writer.connect() as connection, connection.begin():
                if not self._is_sqlite:
                    await connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _WRITE_LOCK})
                yield connection

    async def ping(self) -> None:
        """Raises ApiError(store_unavailable) when the database cannot be read."""
        async with self.read() as connection:
            await connection.execute(text("SELECT 1"))


class _translated:
    """Turns the database's failures into ours; leaves everything else alone."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind_: Any, error: BaseException | None, _trace: Any) -> None:
        if error is None or isinstance(error, ApiError | Conflict):
            return
        if isinstance(error, SQLAlchemyError) and type(error).__name__ == "IntegrityError":
            raise Conflict from None
        if isinstance(
            error, DBAPIError | OperationalError | InterfaceError | PoolTimeout | OSError | TimeoutError
        ):
            logging.getLogger("inferno.storage").error("the database failed: %s", _kind(error))
            raise ApiError(
                "store_unavailable", "The database cannot be reached. Try again later.", retry_after=5
            ) from None


def _kind(error: BaseException) -> str:
    """Name a failure without its statement, parameters or path."""
    origin = getattr(error, "orig", None)
    return type(error).__name__ if origin is None else f"{type(error).__name__}: {type(origin).__name__}"


def _private_file(path: Path) -> None:
    """Make the database file 0600 before SQLite does; refuse what is no regular file."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        return
    if not stat.S_ISREG(found.st_mode):
        raise StartError("the database file is not a regular file")
    if found.st_mode & 0o077:
        os.chmod(path, 0o600)


def revision(connection: Connection) -> str | None:
    """Return the schema's revision; None: an empty database."""
    from alembic.runtime.migration import MigrationContext

    return MigrationContext.configure(connection).get_current_revision()


def upgrade(connection: Connection, target: str = "head") -> None:
    """Run the revisions up to `target` inside of the connection's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, target)
