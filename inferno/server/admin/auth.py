"""/api/v1/auth: login, logout, one's password, who am I, API keys."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from ...errors import ApiError
from ...security.accounts import KeySpec
from ...security.addresses import source_block
from ...security.audit_format import timestamp
from ...security.verbs import shown_key
from ..http import Reply, Request, json_reply
from ..identity import WorkerIdentity
from ..parsing import parse
from .common import actor, num_rows, page, query
from .schemas import KeyRequest, LoginRequest, ManagedKeyRequest, PasswordRequest


class AuthRoutes:
    """Handlers."""

    def __init__(self, identity: WorkerIdentity) -> None:
        self._identity = identity

    async def login(self, request: Request) -> Reply:
        wanted, _ = parse(await request.json_body(), LoginRequest)
        context = request.context
        delay = await self._identity.buckets.login(context.source, wanted.username)
        if delay > 0:
            await asyncio.sleep(delay)
        found = await self._identity.login.login(
            wanted.username,
            wanted.password,
            block=source_block(context.source).text,
            request_id=context.request_id,
        )
        return json_reply(
            {"token": found.token, "token_type": "bearer", "expires_at": timestamp(found.expires_at)}
        )

    async def logout(self, request: Request) -> Reply:
        await self._identity.login.logout(request.principal, actor(request))
        return json_reply({"ended": 1})

    async def logout_all(self, request: Request) -> Reply:
        if request.principal.session_id is None:
            raise ApiError(
                "insufficient_permissions", "All sessions are ended from a session, not with an API key."
            )
        await self._identity.accounts.end_all_sessions(actor(request), request.principal.id)
        return json_reply({"ended": "all"})

    async def password(self, request: Request) -> Reply:
        wanted, _ = parse(await request.json_body(), PasswordRequest)
        await self._identity.buckets.password_change(request.principal)
        await self._identity.login.change_password(
            request.principal, actor(request), wanted.current_password, wanted.new_password
        )
        return json_reply({"changed": True, "ended": "all"})

    async def me(self, request: Request) -> Reply:
        principal = request.principal
        security = self._identity.settings.security
        own = principal.account_limits
        configured = {
            "max_requests_per_minute": security.max_requests_per_minute,
            "max_requests_per_hour": security.max_requests_per_hour,
            "max_tokens_per_minute": security.max_tokens_per_minute,
            "max_concurrent_requests": security.max_concurrent_requests_per_user,
            "max_input_length": security.max_input_length,
        }
        limits = {name: getattr(own, name, None) or value for name, value in configured.items()}
        key: dict[str, Any] | None = None
        if principal.key_id is not None:
            key = {
                "id": principal.key_id,
                "limits": None
                if principal.key_limits is None
                else msgspec.structs.asdict(principal.key_limits),
                "redact_profile": principal.redact_profile,
            }
        return json_reply(
            {
                "id": principal.id,
                "username": principal.name,
                "role": principal.role,
                "credential": "session" if principal.session_id is not None else principal.actor_type,
                "permissions": sorted(principal.permissions),
                "models": None if principal.models is None else sorted(principal.models),
                "key": key,
                "expires_at": None
                if principal.session_expires_at is None
                else timestamp(principal.session_expires_at),
                "limits": limits,
                "remaining": await self._identity.buckets.left(principal),
            }
        )

    async def list_keys(self, request: Request) -> Reply:
        parameters = query(request, "limit", "after", "owner")
        owner: str | None = parameters.get("owner", request.principal.id)
        if owner != request.principal.id:
            if "manage_users" not in request.principal.permissions:
                raise ApiError("insufficient_permissions", "Keys of others need the permission manage_users.")
            owner = None if owner == "all" else owner
        wanted = num_rows(parameters)
        found = await self._identity.accounts.list_keys(owner, parameters.get("after", ""), wanted + 1)
        now = time.time()
        return page([shown_key(key, now) for key in found], wanted, "id")

    async def create_key(self, request: Request) -> Reply:
        principal = request.principal
        is_manager = "manage_users" in principal.permissions
        body = await request.json_body()
        wanted: KeyRequest = parse(body, ManagedKeyRequest if is_manager else KeyRequest)[0]
        await self._identity.buckets.key_creation(principal)
        owner, profile = principal.id, None
        if isinstance(wanted, ManagedKeyRequest):
            owner, profile = wanted.owner or owner, wanted.redact_profile
        spec = KeySpec(
            name=wanted.name,
            permissions=wanted.permissions,
            expires_in_days=wanted.expires_in_days,
            models=self._models(principal.models, wanted.models),
            limits=wanted.limits.limits(),
            redact_profile=profile,
        )
        key, text = await self._identity.accounts.create_key(actor(request), owner, spec)
        return json_reply({**shown_key(key, key.created_at), "key": text}, status=201)

    async def revoke_key(self, request: Request) -> Reply:
        principal = request.principal
        owner = None if "manage_users" in principal.permissions else principal.id
        key_id = request.params["id"]
        await self._identity.accounts.revoke_key(actor(request), key_id, owner_id=owner)
        return json_reply({"id": key_id, "deleted": True})

    @staticmethod
    def _models(own: frozenset[str] | None, wanted: list[str] | None) -> list[str] | None:
        """A key that may use some models makes no key that may use more."""
        if own is None:
            return wanted
        if wanted is None:
            return sorted(own)
        if not own.issuperset(wanted):
            raise ApiError(
                "model_not_allowed", "A key cannot have a model that its maker may not use.", param="models"
            )
        return wanted
