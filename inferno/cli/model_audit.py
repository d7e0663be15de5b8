"""What the model commands leave in the audit log: verified, refused, waived.

Beside a running server the record goes through its control socket, since the supervisor is the log's one writer; without
one the command takes the data directory's lock and writes it itself. Where there is no audit log yet (no data directory,
or auditing turned off) there is nothing to write to, and the commands work all the same.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ..config import Settings
from ..datadir import DataDir, DataLock
from ..errors import ApiError
from ..pool.audit_sink import AuditSink
from ..pool.control import NoServerError, ask
from ..pool.verbs import Caller, Verbs

VERB = "models.note"


class ModelNote(Struct, frozen=True, forbid_unknown_fields=True):
    """One record: which model, and the digest, the refusal's reason or the waived reason."""

    event: Literal["model.verified", "model.refused", "model.waived"]
    target: Annotated[str, Meta(max_length=256)]
    reason: Annotated[str, Meta(max_length=256)] = ""


class ModelNotes(Struct, frozen=True, forbid_unknown_fields=True):
    """The argument of the verb."""

    notes: Annotated[list[ModelNote], Meta(min_length=1, max_length=64)]


def register(verbs: Verbs, audit: AuditSink) -> None:
    """Bring the verb to the supervisor; only commands may use it."""
    verbs.register(VERB, partial(_note, audit), ("command",))


async def _note(audit: AuditSink, arguments: dict[str, Any], caller: Caller) -> Any:
    try:
        wanted = msgspec.convert(arguments, ModelNotes)
    except msgspec.ValidationError as error:
        raise ApiError("invalid_value", str(error)) from None
    await audit.append([_record(note, caller.uid) for note in wanted.notes], durable=True)
    return len(wanted.notes)


def _record(note: ModelNote, uid: int) -> dict[str, Any]:
    return {
        "event": note.event,
        "actor": f"uid:{uid}",
        "actor_type": "command",
        "ip": "local",
        "target": note.target,
        "result": "failure" if note.event == "model.refused" else "success",
        "reason": note.reason,
        "request_id": "",
    }


def note_models(settings: Settings, notes: list[ModelNote]) -> None:
    """Write the records before the change that they tell of. Raises InfernoError if there is a log that cannot be
    written: then the change must not happen either."""
    data = DataDir(settings.storage.data_dir)
    try:
        ask(data.control_socket, VERB, {"notes": [msgspec.to_builtins(note) for note in notes]})
        return
    except NoServerError:
        pass
    except ApiError as error:
        if error.code == "not_found":  # the running server has auditing off
            return
        raise
    if not settings.security.audit_logging_enabled or not (data.keys / "audit.key").exists():
        return
    asyncio.run(_write_here(settings, data, notes))


async def _write_here(settings: Settings, data: DataDir, notes: list[ModelNote]) -> None:
    from .server_parts import make_audit

    with DataLock(data):
        audit = make_audit(settings, data)
        audit.start()
        try:
            await audit.append([_record(note, os.getuid()) for note in notes], durable=True)
        finally:
            await audit.close()
