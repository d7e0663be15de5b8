"""The audit log's records: events, fields, canonical bytes and the keyed chain. Shared by writer and reader.

A line is one JSON object of ASCII characters, its members in this order:

    {"seq":…,"time":…,"event":…,"actor":…,"actor_type":…,"ip":…,"target":…,"result":…,"reason":…,"request_id":…,
     "prev":"<64 hex>","hash":"<64 hex>"}

`hash` is HMAC-SHA-256, with the audit key, of the line's bytes before `,"hash":"`. They include `seq` and `prev`, the
hash of the record before, so any change, loss, insertion, swap or replay breaks the chain at its place.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Any, Final

EVENTS: Final = frozenset(
    (
        "auth.login", "auth.logout", "auth.failure", "auth.key", "key.create", "key.revoke", "key.expire", "user.create",
        "user.update", "user.delete", "user.password", "config.change", "config.reload", "limit.exceeded",
        "input.flagged", "input.blocked", "output.redacted", "guard.fault", "model.verified", "model.refused",
        "model.waived", "model.load", "model.unload", "engine.crash", "sandbox.state", "request.quarantined",
        "request.released", "server.start", "server.stop", "audit.gap",
    )
)  # fmt: skip
FIELDS: Final = ("event", "actor", "actor_type", "ip", "target", "result", "reason", "request_id")
MAX_FIELD_LENGTH: Final = 256  # code points of one field
FIRST_PREV: Final = "0" * 64
HASH_SUFFIX_LENGTH: Final = 75  # ,"hash":"<64>"}
# What has the form of a key or a session token never enters the log, in whatever field a client put it.
_SECRET_FORMS = re.compile(r"inf_([0-9A-Za-z]{12})_[0-9A-Za-z]+|eyJ[\w-]+\.[\w-]+\.[\w-]+")
_RESULTS: Final = frozenset(("success", "failure", "error"))


class Chain:
    """Computes record hashes with a key that is set up once."""

    def __init__(self, key: bytes) -> None:
        if len(key) < 32:
            raise ValueError(f"an audit key of {len(key)} bytes; at least 32 are needed")
        block = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))  # RFC 2104
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def __repr__(self) -> str:
        return "Chain()"

    def digest(self, body: bytes) -> str:
        inner = self._inner.copy()
        inner.update(body)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.hexdigest()


def record(
    event: str,
    *,
    result: str = "success",
    reason: str = "",
    actor: str = "",
    actor_type: str = "",
    ip: str = "",
    target: str = "",
    request_id: str = "",
) -> dict[str, Any]:
    """Return what a caller hands to the log. Times, numbers and hashes are the writer's."""
    return {
        "event": event, "actor": actor, "actor_type": actor_type, "ip": ip, "target": target, "result": result,
        "reason": reason, "request_id": request_id,
    }  # fmt: skip


def check(fields: dict[str, Any]) -> None:
    """Raise ValueError unless `fields` are those of a record: known event and result, text everywhere."""
    if fields.get("event") not in EVENTS:
        raise ValueError("an unknown audit event")
    if fields.get("result") not in _RESULTS:
        raise ValueError("an unknown audit result")
    for name, value in fields.items():
        if name not in FIELDS or not isinstance(value, str):
            raise ValueError("an audit field of another name or type")


def encode(fields: dict[str, Any], seq: int, when: float, prev: str, chain: Chain) -> tuple[bytes, str]:
    """Return one line with its newline, and its hash. Over-long fields are cut and end in "..."."""
    values: dict[str, Any] = {"seq": seq, "time": timestamp(when)}
    for name in FIELDS:
        value = _SECRET_FORMS.sub(_masked, fields.get(name, ""))
        values[name] = value if len(value) <= MAX_FIELD_LENGTH else value[: MAX_FIELD_LENGTH - 3] + "..."
    values["prev"] = prev
    # ensure_ascii escapes C0, C1, U+2028/2029, lone surrogates and all else but DEL.
    text = json.dumps(values, ensure_ascii=True, separators=(",", ":")).replace("\x7f", "\\u007f")
    body = text[:-1].encode("ascii")
    digest = chain.digest(body)
    return b'%b,"hash":"%b"}\n' % (body, digest.encode("ascii")), digest


def _masked(found: re.Match[str]) -> str:
    return f"[key {found[1]}]" if found[1] else "[token]"


def timestamp(when: float) -> str:
    """Return RFC 3339 in UTC with microseconds."""
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def encode_head(seq: int, digest: str, when: float, chain: Chain) -> bytes:
    """Return the exported head: what the log held at least, itself sealed with the audit key."""
    body = f'{{"seq":{seq},"hash":"{digest}","time":"{timestamp(when)}"'
    return f'{body},"seal":"{chain.digest(body.encode("ascii"))}"}}\n'.encode("ascii")


def decode_head(data: bytes, chain: Chain) -> tuple[int, str] | None:
    """Return (seq, hash) of a head whose seal is right, else None."""
    try:
        values = json.loads(data)
        seq, digest, seal = values["seq"], values["hash"], values["seal"]
        body = f'{{"seq":{seq},"hash":"{digest}","time":"{values["time"]}"'.encode("ascii")
    except (ValueError, KeyError, TypeError):
        return None
    if type(seq) is not int or not isinstance(digest, str) or chain.digest(body) != seal:
        return None
    return seq, digest
