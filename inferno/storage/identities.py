"""Queries on accounts, API keys, revoked sessions and the log of identity changes, inside of a caller's transaction.

Rows leave as frozen structs. Lists are paged by the last id seen. Knows no rules: those are in inferno.security.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from sqlalchemy import and_, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from . import schema


class Account(Struct, frozen=True):
    """One row of accounts. Its text form shows no hash."""

    id: str
    name: str
    name_key: str
    skeleton: str
    role: str
    disabled: bool
    password_hash: str
    epoch: int
    limits: str
    created_at: int
    updated_at: int

    def __repr__(self) -> str:
        return f"Account(id={self.id!r}, name={self.name!r}, role={self.role!r})"


class ApiKey(Struct, frozen=True):
    """One row of api_keys. Its text form shows no digest."""

    id: str
    account_id: str
    name: str
    digest: bytes
    last_four: str
    permissions: str
    models: str | None
    limits: str
    redact_profile: str | None
    created_at: int
    expires_at: int
    revoked_at: int | None = None
    expiry_recorded: bool = False
    last_used_at: int | None = None

    def __repr__(self) -> str:
        return f"ApiKey(id={self.id!r}, account_id={self.account_id!r})"


_ACCOUNT = [schema.accounts.c[name] for name in Account.__struct_fields__]
_KEY = [schema.api_keys.c[name] for name in ApiKey.__struct_fields__]


def _fields(row: Struct) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__struct_fields__}


# ---------------------------------------------------------------- accounts


async def account_by_id(connection: AsyncConnection, account_id: str) -> Account | None:
    row = (await connection.execute(select(*_ACCOUNT).where(schema.accounts.c.id == account_id))).first()
    return None if row is None else Account(*row)


async def account_by_name(connection: AsyncConnection, name_key: str) -> Account | None:
    row = (await connection.execute(select(*_ACCOUNT).where(schema.accounts.c.name_key == name_key))).first()
    return None if row is None else Account(*row)


async def list_accounts(connection: AsyncConnection, after: str, num_rows: int) -> list[Account]:
    """Return accounts by id, those after `after` ("": from the start)."""
    query = (
        select(*_ACCOUNT).where(schema.accounts.c.id > after).order_by(schema.accounts.c.id).limit(num_rows)
    )
    return [Account(*row) for row in await connection.execute(query)]


async def num_accounts(connection: AsyncConnection) -> int:
    return int((await connection.execute(select(func.count()).select_from(schema.accounts))).scalar_one())


async def num_other_admins(connection: AsyncConnection, account_id: str) -> int:
    """Return how many enabled admins there are beside `account_id`."""
    table = schema.accounts
    query = select(func.count()).where(
        and_(table.c.role == "admin", table.c.disabled.is_(False), table.c.id != account_id)
    )
    return int((await connection.execute(query)).scalar_one())


async def has_admin_like(connection: AsyncConnection, skeleton: str, excluding: str = "") -> bool:
    """Whether another admin's name looks like `skeleton`."""
    table = schema.accounts
    query = (
        select(table.c.id)
        .where(and_(table.c.role == "admin", table.c.skeleton == skeleton, table.c.id != excluding))
        .limit(1)
    )
    return (await connection.execute(query)).first() is not None


async def has_account_like(connection: AsyncConnection, skeleton: str) -> bool:
    """Whether any account's name looks like `skeleton`."""
    query = select(schema.accounts.c.id).where(schema.accounts.c.skeleton == skeleton).limit(1)
    return (await connection.execute(query)).first() is not None


async def insert_account(connection: AsyncConnection, account: Account) -> None:
    """Raises IntegrityError (Conflict outside of the transaction) when the name is taken."""
    await connection.execute(insert(schema.accounts).values(**_fields(account)))


async def update_account(connection: AsyncConnection, account_id: str, **values: Any) -> None:
    await connection.execute(
        update(schema.accounts).where(schema.accounts.c.id == account_id).values(**values)
    )


async def delete_account(connection: AsyncConnection, account_id: str) -> None:
    """Remove the account with its keys."""
    await connection.execute(delete(schema.api_keys).where(schema.api_keys.c.account_id == account_id))
    await connection.execute(delete(schema.accounts).where(schema.accounts.c.id == account_id))


# ---------------------------------------------------------------- keys


async def key_with_account(connection: AsyncConnection, key_id: str) -> tuple[ApiKey, Account] | None:
    query = (
        select(*_KEY, *_ACCOUNT)
        .join_from(schema.api_keys, schema.accounts, schema.api_keys.c.account_id == schema.accounts.c.id)
        .where(schema.api_keys.c.id == key_id)
    )
    row = (await connection.execute(query)).first()
    return None if row is None else (ApiKey(*row[: len(_KEY)]), Account(*row[len(_KEY) :]))


async def list_keys(
    connection: AsyncConnection, account_id: str | None, after: str, num_rows: int
) -> list[ApiKey]:
    """Return keys that are not revoked, of one account or of all (None), by id."""
    table = schema.api_keys
    query = select(*_KEY).where(and_(table.c.id > after, table.c.revoked_at.is_(None)))
    if account_id is not None:
        query = query.where(table.c.account_id == account_id)
    return [ApiKey(*row) for row in await connection.execute(query.order_by(table.c.id).limit(num_rows))]


async def num_live_keys(connection: AsyncConnection, account_id: str, now: int) -> int:
    table = schema.api_keys
    query = select(func.count()).where(
        and_(table.c.account_id == account_id, table.c.revoked_at.is_(None), table.c.expires_at > now)
    )
    return int((await connection.execute(query)).scalar_one())


async def insert_key(connection: AsyncConnection, key: ApiKey) -> None:
    await connection.execute(insert(schema.api_keys).values(**_fields(key)))


async def update_key(connection: AsyncConnection, key_id: str, **values: Any) -> None:
    await connection.execute(update(schema.api_keys).where(schema.api_keys.c.id == key_id).values(**values))


async def touch_keys(connection: AsyncConnection, used: dict[str, int]) -> None:
    """Raise last_used_at of each key to its time; an older time changes nothing."""
    table = schema.api_keys
    for key_id, when in used.items():
        newer = or_(table.c.last_used_at.is_(None), table.c.last_used_at < when)
        await connection.execute(
            update(table).where(and_(table.c.id == key_id, newer)).values(last_used_at=when)
        )


async def expired_keys(connection: AsyncConnection, now: int, num_rows: int) -> list[ApiKey]:
    """Return expired keys whose expiry is not in the audit log yet."""
    table = schema.api_keys
    query = (
        select(*_KEY)
        .where(
            and_(table.c.expires_at <= now, table.c.revoked_at.is_(None), table.c.expiry_recorded.is_(False))
        )
        .limit(num_rows)
    )
    return [ApiKey(*row) for row in await connection.execute(query)]


# ---------------------------------------------------------------- sessions


async def revoke_session(connection: AsyncConnection, jti: str, account_id: str, expires_at: int) -> bool:
    """Note a session as ended; False: it was already."""
    if await is_session_revoked(connection, jti):
        return False
    await connection.execute(
        insert(schema.revoked_sessions).values(jti=jti, account_id=account_id, expires_at=expires_at)
    )
    return True


async def is_session_revoked(connection: AsyncConnection, jti: str) -> bool:
    query = select(schema.revoked_sessions.c.jti).where(schema.revoked_sessions.c.jti == jti)
    return (await connection.execute(query)).first() is not None


async def prune_sessions(connection: AsyncConnection, now: int) -> int:
    """Forget revocations of sessions that are over; returns how many."""
    done = await connection.execute(
        delete(schema.revoked_sessions).where(schema.revoked_sessions.c.expires_at <= now)
    )
    return int(done.rowcount)


# ---------------------------------------------------------------- changes, for other hosts and after a crash


async def note_change(connection: AsyncConnection, identity: bytes, now: int) -> None:
    await connection.execute(
        insert(schema.identity_changes).values(identity=identity.decode("ascii"), changed_at=now)
    )


async def last_change(connection: AsyncConnection) -> int:
    return int(
        (
            await connection.execute(select(func.coalesce(func.max(schema.identity_changes.c.seq), 0)))
        ).scalar_one()
    )


async def changes_since(connection: AsyncConnection, seq: int, num_rows: int) -> list[tuple[int, bytes]]:
    table = schema.identity_changes
    query = (
        select(table.c.seq, table.c.identity).where(table.c.seq > seq).order_by(table.c.seq).limit(num_rows)
    )
    return [(int(row[0]), row[1].encode("ascii")) for row in await connection.execute(query)]


async def prune_changes(connection: AsyncConnection, before: int) -> None:
    """Forget old changes, but never the newest: last_change must not go back."""
    table = schema.identity_changes
    newest = select(func.max(table.c.seq)).scalar_subquery()
    await connection.execute(delete(table).where(and_(table.c.changed_at < before, table.c.seq < newest)))
