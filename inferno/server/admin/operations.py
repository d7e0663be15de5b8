"""/api/v1/audit, /usage, /models, /config and /metrics: what operators read and change while the server runs.

What needs the audit key, an engine or the configuration's owner is asked of the supervisor.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from ... import config, telemetry
from ...config import KEYS, value_of
from ...errors import ApiError, ConfigError
from ...security.audit_format import record
from ...storage import usage
from ..control import Control
from ..http import Reply, Request, encode_json, json_reply
from ..identity import WorkerIdentity
from ..parsing import parse
from ..services import Services
from .common import actor, num_rows, page, query
from .schemas import ConfigPatch

VERIFY_SECONDS = 600.0
LOAD_SECONDS = 600.0
_FILTERS = ("since", "until", "actor", "event", "result", "ip", "target", "request_id", "text")


class OperationRoutes:
    """Handlers."""

    def __init__(self, services: Services, identity: WorkerIdentity, control: Control) -> None:
        self._services = services
        self._identity = identity
        self._control = control

    # ------------------------------------------------------------ audit

    async def search_audit(self, request: Request) -> Reply:
        parameters = query(request, "limit", "after", *_FILTERS)
        wanted = num_rows(parameters)
        self._identity.audit.flush()
        arguments: dict[str, Any] = {
            "filter": {name: value for name, value in parameters.items() if name in _FILTERS},
            "limit": min(wanted + 1, 1000),
        }
        after = parameters.get("after")
        if after is not None:
            if not (after.isascii() and after.isdigit() and len(after) < 16):
                raise ApiError("invalid_value", "after: expected the value of next.", param="after")
            arguments["before"] = int(after)
        return page(await self._control.ask("audit.search", arguments), wanted, "seq")

    async def verify_audit(self, request: Request) -> Reply:
        found = await self._control.ask("audit.verify", timeout_seconds=VERIFY_SECONDS)
        verdicts = ("intact", "broken", "unreadable")
        return json_reply({**found, "verdict": verdicts[found["status"]]})

    # ------------------------------------------------------------ usage

    async def usage(self, request: Request) -> Reply:
        parameters = query(request, "limit", "after", "since", "until", "key_id", "model", "user")
        principal = request.principal
        account: str | None = principal.id
        if "manage_users" in principal.permissions:
            account = parameters.get("user")
        elif parameters.get("user", principal.id) != principal.id:
            raise ApiError("insufficient_permissions", "Usage of others needs the permission manage_users.")
        wanted = num_rows(parameters)
        await self._identity.count_usage()
        rows = await usage.report(
            self._identity.store,
            account_id=account,
            key_id=parameters.get("key_id"),
            model=parameters.get("model"),
            since=parameters.get("since", ""),
            until=parameters.get("until", "9999-99-99"),
            after=_decode_cursor(parameters.get("after")),
            num_rows=wanted + 1,
        )
        shown = [
            {
                "day": row["day"],
                "user": row["account_id"],
                "key": row["key_id"] or None,
                "model": row["model"],
                "requests": row["requests"],
                "prompt_tokens": row["prompt_tokens"],
                "completion_tokens": row["completion_tokens"],
            }
            for row in rows[:wanted]
        ]
        following = _encode_cursor(rows[wanted - 1]) if len(rows) > wanted else None
        return json_reply({"data": shown, "next": following})

    # ------------------------------------------------------------ models

    async def list_models(self, request: Request) -> Reply:
        allowed = request.principal.models
        found = await self._control.ask("models.list")
        return json_reply(
            {"data": [model for model in found if allowed is None or model["name"] in allowed], "next": None}
        )

    async def load_model(self, request: Request) -> Reply:
        return await self._model_action(request, "model.load", "models.load")

    async def unload_model(self, request: Request) -> Reply:
        return await self._model_action(request, "model.unload", "models.unload")

    async def verify_model(self, request: Request) -> Reply:
        """Changes nothing, so the record follows the verdict."""
        name = self._named(request)
        found = await self._control.ask("models.verify", {"name": name}, timeout_seconds=LOAD_SECONDS)
        if found["verdict"] == "valid":
            await self._said(request, "model.verified", target=name, reason=", ".join(found["sha256"]))
        else:
            await self._said(request, "model.refused", target=name, reason=found["reason"], result="failure")
        return json_reply(found)

    async def delete_model(self, request: Request) -> Reply:
        name = self._named(request)
        files = query(request, "files").get("files", "keep")
        if files not in ("keep", "delete"):
            raise ApiError("invalid_value", "files: expected keep or delete.", param="files")
        await self._said(request, "config.change", target=f"models.{name}", reason=f"remove, files: {files}")
        arguments = {"name": name, "delete_files": files == "delete"}
        return json_reply(await self._control.ask("models.remove", arguments))

    @staticmethod
    def _named(request: Request) -> str:
        """The model's name in the path, if the caller may know of it."""
        name = request.params["name"]
        allowed = request.principal.models
        if allowed is not None and name not in allowed:
            raise ApiError("model_not_found", "The model does not exist.", param="model")
        return name

    async def _model_action(self, request: Request, event: str, verb: str) -> Reply:
        name = self._named(request)
        await self._said(request, event, target=name, reason="asked")
        return json_reply(await self._control.ask(verb, {"name": name}, timeout_seconds=LOAD_SECONDS))

    # ------------------------------------------------------------ configuration

    async def get_config(self, request: Request) -> Reply:
        return json_reply(shown_config(self._services.settings))

    async def change_config(self, request: Request) -> Reply:
        wanted, _ = parse(await request.json_body(), ConfigPatch)
        changes = {
            f"{section}.{name}": value
            for section in wanted.__struct_fields__
            for name, value in getattr(wanted, section).items()
        }
        if not changes:
            raise ApiError("invalid_value", "Nothing to change.")
        try:
            config.with_changes(self._services.settings, changes)
        except ConfigError as error:
            raise ApiError("invalid_value", str(error)) from None
        await self._said(request, "config.change", target=", ".join(sorted(changes)), reason="asked")
        changed = await self._control.ask("config.change", {"changes": changes})
        return json_reply(changed)

    # ------------------------------------------------------------ prefix stores

    async def get_cache(self, request: Request) -> Reply:
        allowed = request.principal.models
        found = await self._control.ask("cache.state")
        return json_reply(
            {"data": [entry for entry in found if allowed is None or entry["model"] in allowed], "next": None}
        )

    async def clear_cache(self, request: Request) -> Reply:
        """All prefixes but the operator's for who manages users (`scope=own`: only theirs); for others, their own."""
        scope = query(request, "scope").get("scope")
        if scope not in (None, "own", "all"):
            raise ApiError("invalid_value", "scope: expected own or all.", param="scope")
        manages = "manage_users" in request.principal.permissions
        if scope == "all" and not manages:
            raise ApiError("insufficient_permissions", "The cache of others needs the permission manage_users.")
        is_own = scope == "own" or not manages
        await self._said(request, "config.change", target="cache", reason="own" if is_own else "all")
        arguments = {"principal": self._services.tag(request.principal)} if is_own else {}
        cleared = await self._control.ask("cache.clear", arguments)
        return json_reply({"scope": "own" if is_own else "all", **cleared})

    async def _said(
        self, request: Request, event: str, *, target: str, reason: str, result: str = "success"
    ) -> None:
        """Put an action on disk before it is done. Raises ApiError(audit_unavailable)."""
        by = actor(request)
        fields = record(
            event,
            actor=by.id,
            actor_type=by.actor_type,
            ip=by.ip,
            target=target,
            result=result,
            reason=reason,
            request_id=by.request_id,
        )
        await self._identity.audit.append([fields], durable=True)


class MetricsPage:
    """GET /metrics: the only handler here that needs no accounts."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, request: Request) -> Reply:
        if not self._services.settings.telemetry.metrics_enabled:
            raise ApiError("not_found", "Metrics are turned off.")
        from ... import metrics  # reads the folder's name from the environment at its import

        self._services.observer.flush()
        return Reply(200, metrics.render(), [(b"content-type", metrics.CONTENT_TYPE.encode("ascii"))])


def shown_config(settings: config.Settings) -> dict[str, dict[str, Any]]:
    """Return effective values by section, without secrets."""
    found: dict[str, dict[str, Any]] = {}
    for name, key in KEYS.items():
        section, _, short = name.partition(".")
        value = value_of(settings, name)
        found.setdefault(section, {})[short] = (
            telemetry.clean(value) if key.is_url and isinstance(value, str) else value
        )
    return found


def _encode_cursor(row: dict[str, Any]) -> str:
    place = [row[name] for name in ("day", "account_id", "key_id", "model")]
    return base64.urlsafe_b64encode(encode_json(place)).decode("ascii").rstrip("=")


def _decode_cursor(text: str | None) -> tuple[str, str, str, str] | None:
    if text is None:
        return None
    from ..json_gate import decode

    try:
        place = decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        day, account, key, model = place
    except (ValueError, binascii.Error, TypeError, ApiError):
        raise ApiError("invalid_value", "after: expected the value of next.", param="after") from None
    if not all(isinstance(part, str) for part in place):
        raise ApiError("invalid_value", "after: expected the value of next.", param="after")
    return day, account, key, model
