"""Usage counters with their counted journals, the log of identity changes, and when a key was last used."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("last_used_at", sa.BigInteger, nullable=True))
    op.add_column(
        "api_keys", sa.Column("expiry_recorded", sa.Boolean, nullable=False, server_default=sa.false())
    )
    op.create_table(
        "usage",
        sa.Column("day", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("day", "account_id", "key_id", "model", name="pk_usage"),
    )
    op.create_index("ix_usage_account_id", "usage", ["account_id"])
    op.create_table(
        "usage_batches",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("counted_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_usage_batches"),
    )
    op.create_table(
        "identity_changes",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("identity", sa.Text, nullable=False),
        sa.Column("changed_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_identity_changes"),
        sqlite_autoincrement=True,
    )
