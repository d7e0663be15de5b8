"""Tables of the one store. The migrations beside this file build them; a test compares the two.

Times are UNIX seconds (integers, UTC). Ids are text and never used twice. No column holds a password, a key or a
token: only an argon2id hash, a keyed hash and a random session id. Runs wherever the store does: front workers,
supervisor, commands.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

accounts = Table(
    "accounts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("name_key", Text, nullable=False, unique=True),  # NFKC, case folded
    Column("skeleton", Text, nullable=False),  # look-alike form; compared with those of admins
    Column("role", Text, nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column(
        "password_hash", Text, nullable=False
    ),  # argon2id with its parameters; "" for an account without one
    Column("epoch", BigInteger, nullable=False),  # sessions carry it; raised to end all of them
    Column("limits", Text, nullable=False),  # JSON of KeyLimits
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", Text, ForeignKey("accounts.id", ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),  # HMAC-SHA-256 of the whole key with the pepper
    Column("last_four", Text, nullable=False),
    Column("permissions", Text, nullable=False),  # JSON list
    Column("models", Text, nullable=True),  # JSON list; NULL: all
    Column("limits", Text, nullable=False),  # JSON of KeyLimits
    Column("redact_profile", Text, nullable=True),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger, nullable=True),
    Column("expiry_recorded", Boolean, nullable=False),  # key.expire stands in the audit log
    Column("last_used_at", BigInteger, nullable=True),
)
Index("ix_api_keys_account_id", api_keys.c.account_id)

revoked_sessions = Table(
    "revoked_sessions",
    metadata,
    Column("jti", Text, primary_key=True),
    Column("account_id", Text, nullable=False),
    Column("expires_at", BigInteger, nullable=False),  # exp + skew: afterwards the row means nothing
)
Index("ix_revoked_sessions_expires_at", revoked_sessions.c.expires_at)

settings = Table(
    "settings",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

# Revision 2

usage = Table(
    "usage",
    metadata,
    Column("day", Text, primary_key=True),  # YYYY-MM-DD, UTC
    Column("account_id", Text, primary_key=True),  # kept when the account goes: no foreign key
    Column("key_id", Text, primary_key=True),  # "" for a session
    Column("model", Text, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
)
Index("ix_usage_account_id", usage.c.account_id)

usage_batches = Table(
    "usage_batches",
    metadata,
    Column("id", Text, primary_key=True),  # a journal that is counted already
    Column("counted_at", BigInteger, nullable=False),
)

identity_changes = Table(
    "identity_changes",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("identity", Text, nullable=False),  # "u:<account>", "k:<key>", "s:<session>"
    Column("changed_at", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)
