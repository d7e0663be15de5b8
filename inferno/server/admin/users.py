"""/api/v1/users: accounts, for those who manage users."""

from __future__ import annotations

from ...errors import ApiError
from ...security.verbs import shown_account
from ..http import Reply, Request, json_reply
from ..identity import WorkerIdentity
from ..parsing import parse
from .common import actor, num_rows, page, query
from .schemas import UserPatch, UserRequest


class UserRoutes:
    """Handlers."""

    def __init__(self, identity: WorkerIdentity) -> None:
        self._accounts = identity.accounts

    async def list_users(self, request: Request) -> Reply:
        parameters = query(request, "limit", "after")
        wanted = num_rows(parameters)
        found = await self._accounts.list_accounts(parameters.get("after", ""), wanted + 1)
        return page([shown_account(account) for account in found], wanted, "id")

    async def create_user(self, request: Request) -> Reply:
        wanted, _ = parse(await request.json_body(), UserRequest)
        made = await self._accounts.create_account(
            actor(request),
            username=wanted.username,
            password=wanted.password,
            role=wanted.role,
            limits=wanted.limits.limits(),
        )
        return json_reply(shown_account(made), status=201)

    async def get_user(self, request: Request) -> Reply:
        return json_reply(shown_account(await self._accounts.account(request.params["id"])))

    async def change_user(self, request: Request) -> Reply:
        wanted, _ = parse(await request.json_body(), UserPatch)
        if wanted == UserPatch():
            raise ApiError("invalid_value", "Nothing to change: send role, disabled or limits.")
        changed = await self._accounts.update_account(
            actor(request),
            request.params["id"],
            role=wanted.role,
            disabled=wanted.disabled,
            limits=None if wanted.limits is None else wanted.limits.limits(),
        )
        return json_reply(shown_account(changed))

    async def delete_user(self, request: Request) -> Reply:
        await self._accounts.delete_account(actor(request), request.params["id"])
        return json_reply({"id": request.params["id"], "deleted": True})
