"""The store: migrations, transactions, constraints, loss; the same body over SQLite and PostgreSQL."""

import asyncio
import contextlib
import os
import re
import sqlite3
import stat
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from inferno.errors import ApiError, ConfigError, StartError
from inferno.storage import identities, schema
from inferno.storage import store as store_module
from inferno.storage.identities import Account, ApiKey
from inferno.storage.store import HEAD_REVISION, Conflict, Store, revision, upgrade

NOW = 1_800_000_000


def account(name="ann", **changes):
    values = {
        "id": f"acct_{name}", "name": name, "name_key": name, "skeleton": name, "role": "user", "disabled": False,
        "password_hash": "", "epoch": 0, "limits": "{}", "created_at": NOW, "updated_at": NOW,
    }  # fmt: skip
    return Account(**{**values, **changes})


def key(key_id="k1", owner="acct_ann", **changes):
    values = {
        "id": key_id, "account_id": owner, "name": "n", "digest": b"\x00\xff", "last_four": "abcd",
        "permissions": "[]", "models": None, "limits": "{}", "redact_profile": None, "created_at": NOW,
        "expires_at": NOW + 100,
    }  # fmt: skip
    return ApiKey(**{**values, **changes})


def test_an_empty_database_gets_the_whole_schema(store):
    async def main():
        async with store() as opened:
            async with opened.read() as connection:
                assert await connection.run_sync(revision) == HEAD_REVISION
                found = await connection.run_sync(lambda sync: _shape(inspect(sync)))
            await opened.open(migrate=True)  # idempotent
        return found

    found = asyncio.run(main())
    for name, table in schema.metadata.tables.items():
        assert found[name] == {column.name: bool(column.nullable) for column in table.columns}, name
    assert set(found) == {*schema.metadata.tables, "alembic_version"}


def _shape(inspector):
    return {
        name: {column["name"]: column["nullable"] for column in inspector.get_columns(name)}
        for name in inspector.get_table_names()
    }


def test_the_previous_schema_is_upgraded_with_its_rows(store_url):
    async def main():
        opened = Store(store_url)
        async with opened._writer.begin() as connection:
            await connection.run_sync(upgrade, "0001")
            await identities.insert_account(connection, account())
            await connection.execute(
                text(
                    "INSERT INTO api_keys (id, account_id, name, digest, last_four, permissions, limits, created_at, "
                    "expires_at) VALUES ('k1', 'acct_ann', 'n', :digest, 'abcd', '[]', '{}', 1, 2)"
                ),
                {"digest": b"d"},
            )
        with pytest.raises(StartError, match=f"schema 0001; this version needs {HEAD_REVISION}"):
            await opened.open()  # a worker never migrates
        await opened.open(migrate=True)
        async with opened.read() as connection:
            found = await identities.key_with_account(connection, "k1")
        await opened.close()
        return found

    found_key, found_account = asyncio.run(main())
    assert found_account == account()
    assert (found_key.digest, found_key.last_used_at, found_key.expiry_recorded) == (b"d", None, False)


def test_a_schema_from_the_future_is_refused(store):
    async def main():
        async with store() as opened:
            async with opened.write() as connection:
                await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
            with pytest.raises(StartError):
                await Store(opened._url).open()

    asyncio.run(main())


async def insert_and_fail(opened):
    async with opened.write() as connection:
        await identities.insert_account(connection, account())
        raise RuntimeError("stop")


def test_a_transaction_commits_whole_or_not_at_all(store):
    async def main():
        async with store() as opened:
            with pytest.raises(RuntimeError, match="stop"):
                await insert_and_fail(opened)
            async with opened.read() as connection:
                assert await identities.num_accounts(connection) == 0
            async with opened.write() as connection:
                await identities.insert_account(connection, account())
            with pytest.raises(Conflict):
                async with opened.write() as connection:
                    await identities.insert_account(connection, account(id="other"))
            with pytest.raises(Conflict):  # foreign keys are enforced
                async with opened.write() as connection:
                    await identities.insert_key(connection, key(owner="nobody"))
            async with opened.write() as connection:
                await identities.insert_key(connection, key())
                await identities.delete_account(connection, "acct_ann")
            async with opened.read() as connection:
                assert await identities.list_keys(connection, None, "", 10) == []

    asyncio.run(main())


def test_writers_of_several_stores_are_serial(store):
    """Read, wait, write: no update is lost, and none fails, whichever process holds the other store."""

    async def add(opened):
        async with opened.write() as connection:
            found = await identities.account_by_id(connection, "acct_ann")
            await asyncio.sleep(0.001)
            await identities.update_account(connection, "acct_ann", epoch=found.epoch + 1)

    async def main():
        async with store() as first, store() as second:
            async with first.write() as connection:
                await identities.insert_account(connection, account())
            await asyncio.gather(*(add(first if i % 2 else second) for i in range(40)))
            async with first.read() as connection:
                return (await identities.account_by_id(connection, "acct_ann")).epoch

    assert asyncio.run(main()) == 40


def test_changes_are_numbered_in_order_and_the_newest_stays(store):
    async def main():
        async with store() as opened:
            async with opened.write() as connection:
                assert await identities.last_change(connection) == 0
                for number in range(5):
                    await identities.note_change(connection, b"u:%d" % number, NOW + number)
            async with opened.write() as connection:
                first = await identities.changes_since(connection, 0, 10)
                assert [identity for _, identity in first] == [b"u:0", b"u:1", b"u:2", b"u:3", b"u:4"]
                await identities.prune_changes(connection, NOW + 100)
                assert await identities.changes_since(connection, 0, 10) == first[-1:]
                assert await identities.last_change(connection) == first[-1][0]

    asyncio.run(main())


def test_jwt_10_sec_037_revocations_of_finished_sessions_are_pruned(store):
    async def main():
        async with store() as opened:
            async with opened.write() as connection:
                await connection.execute(
                    schema.revoked_sessions.insert(),
                    [{"jti": f"j{i}", "account_id": "a", "expires_at": NOW - i} for i in range(100_000)],
                )
                assert await identities.revoke_session(connection, "live", "a", NOW + 1)
                assert not await identities.revoke_session(connection, "live", "a", NOW + 1)
            async with opened.write() as connection:
                assert await identities.prune_sessions(connection, NOW) == 100_000
                assert await identities.is_session_revoked(connection, "live")
                assert not await identities.is_session_revoked(connection, "j5")

    asyncio.run(main())


def test_sec_074_values_are_bound_and_change_nothing(store):
    hostile = "' OR 1=1; DROP TABLE accounts; --"

    async def main():
        async with store() as opened:
            async with opened.write() as connection:
                await identities.insert_account(connection, account())
                assert await identities.key_with_account(connection, hostile) is None
                assert await identities.account_by_name(connection, hostile) is None
                await identities.update_account(connection, hostile, role="admin")
                assert await identities.account_by_id(connection, "acct_ann") == account()

    asyncio.run(main())


def test_sec_074_no_statement_is_built_from_strings():
    """Lint: every text() in the storage package takes one literal; no f-string, join or % near SQL words."""
    folder = Path(store_module.__file__).parent
    for path in folder.rglob("*.py"):
        source = path.read_text()
        assert not re.search(r"""f["'][^"']*\b(SELECT|INSERT|UPDATE|DELETE|FROM|WHERE)\b""", source), path
        for call in re.findall(r"\btext\(([^)]*)", source):
            assert re.fullmatch(r'"[^"{}]*(\(:n)?', call) or call.startswith('"'), (path, call)


def test_loss_of_sqlite_is_store_unavailable(tmp_path, monkeypatch):
    """The driver is not asked for a file that does not open: its thread would outlive the loop and then fail."""
    monkeypatch.setattr("aiosqlite.core.Connection._connect", lambda _self: pytest.fail("the driver was asked"))

    async def main():
        opened = Store(f"sqlite:///{tmp_path}/gone/inferno.db")
        with pytest.raises(ApiError) as caught:
            await opened.ping()
        with pytest.raises(StartError) as refused:
            await opened.open()
        await opened.close()
        return caught.value, refused.value

    caught, refused = asyncio.run(main())
    assert (caught.code, caught.status) == ("store_unavailable", 503)
    assert str(tmp_path) not in caught.message + str(refused)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "inferno.db").write_bytes(b"not a database, but long enough" * 100)
    with pytest.raises(StartError, match="cannot be used"):
        asyncio.run(_open_and_close(f"sqlite:///{tmp_path}/inferno.db"))


async def _open_and_close(url):
    opened = Store(url)
    try:
        await opened.open(migrate=True)
    finally:
        await opened.close()


@pytest.mark.postgres
def test_loss_of_postgres_is_store_unavailable(postgres_server):
    uri = postgres_server.get_uri().replace("data", "nowhere")

    async def main():
        opened = Store(uri)
        with pytest.raises(ApiError) as caught:
            await opened.ping()
        await opened.close()
        return caught.value.code

    assert asyncio.run(main()) == "store_unavailable"


def test_the_sqlite_file_is_private_wal_and_safe(tmp_path):
    path = tmp_path / "inferno.db"

    async def main():
        opened = Store(f"sqlite:///{path}")
        await opened.open(migrate=True)
        async with opened.write() as connection:
            rows = [(await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one() for name in
                    ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")]  # fmt: skip
        await opened.close()
        return rows

    assert asyncio.run(main()) == ["wal", 2, 1, 5000]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    (tmp_path / "link.db").symlink_to(path)
    with pytest.raises(StartError, match="regular file"):
        asyncio.run(_open_and_close(f"sqlite:///{tmp_path}/link.db"))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM accounts").fetchone() == (0,)


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "file:///x", ""])
def test_another_database_is_a_configuration_error(url):
    with pytest.raises(ConfigError, match=r"storage\.url"):
        Store(url)
