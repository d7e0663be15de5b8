"""How the commands of accounts, keys and audit reach the store: beside a running server through its control socket,
without one by taking the writer's lock and doing the same themselves.

An empty store gets its administrator here as at the first start of a server, if INFERNO_ADMIN_PASSWORD is given.

Also how they read secrets: a prompt, standard input or a file, never the command line.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import click

from .. import secrets
from ..config import Settings
from ..datadir import DataDir, DataLock, read_small
from ..errors import ApiError, StartError
from ..pool.control import NoServerError, ask
from ..pool.verbs import Caller

MAX_SECRET_CHARACTERS = 4096
_NO_ACCOUNTS = (
    "There are no accounts yet. Give INFERNO_ADMIN_PASSWORD (or {secrets}), from which the account admin is made, "
    "or make another one first: inferno users add NAME --role admin"
)


def call(settings: Settings, verb: str, arguments: dict[str, Any] | None = None) -> Any:
    """Ask the running server, or do it here. Raises ApiError and StartError."""
    data = DataDir(settings.storage.data_dir)
    try:
        return ask(data.control_socket, verb, arguments, timeout_seconds=600.0)
    except NoServerError:
        pass
    except ApiError as error:
        if error.code == "not_found" and error.message == "Unknown verb.":
            raise ApiError(
                "conflict", "The running server has this turned off (auth_enabled, audit_logging_enabled)."
            ) from None
        raise
    return asyncio.run(_call_here(settings, data, verb, arguments or {}))


async def _call_here(settings: Settings, data: DataDir, verb: str, arguments: dict[str, Any]) -> Any:

    from inferno_native.epochs import EpochTable

    from ..security.host import IdentityHost
    from . import server_parts

    if not data.root.is_dir():
        raise StartError(f"{data.root}: no data directory; make one with: inferno init {data.root}")
    password = secrets.admin_password(settings, os.environ)
    with DataLock(data):
        data.make_keys()
        audit = server_parts.make_audit(settings, data)
        epochs = EpochTable.create()
        host = IdentityHost(
            settings,
            audit,
            epochs,
            pepper=data.read_key("pepper"),
            admin_password=None if password is None else password.reveal(),
            has_upkeep=False,
        )
        audit.start()
        try:
            await host.start()
            verbs = server_parts.make_verbs(settings, data, audit, host)
            return await verbs.call(verb, arguments, Caller(kind="command", pid=os.getpid(), uid=os.getuid()))
        except ApiError as error:
            if error.code == "not_found" and await host.is_empty():
                raise ApiError("not_found", _NO_ACCOUNTS.format(secrets=data.secrets_file)) from None
            raise
        finally:
            await host.close()
            await audit.close()
            epochs.close()


def read_secret(prompt: str, *, from_stdin: bool, from_file: str | None, confirm: bool = False) -> str:
    """Return a secret from a file, from standard input, or from a prompt that shows nothing."""
    if from_file is not None:
        text, _ = read_small(Path(from_file))
    elif from_stdin:
        text = sys.stdin.read(MAX_SECRET_CHARACTERS + 1)
    elif not sys.stdin.isatty():
        raise click.UsageError("no terminal to ask on: use --password-stdin or --password-file")
    else:
        return str(click.prompt(prompt, hide_input=True, confirmation_prompt=confirm))
    text = text.removesuffix("\n").removesuffix("\r")
    if len(text) > MAX_SECRET_CHARACTERS:
        raise click.UsageError(f"a secret has at most {MAX_SECRET_CHARACTERS} characters")
    return text
