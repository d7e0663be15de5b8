"""Request bodies of /api/v1: one struct per role where rights differ, so that a field somebody may not set is unknown."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ...security.principal import KeyLimits

Name = Annotated[str, Meta(min_length=1, max_length=256)]
# Longer passwords than 1024 are told so by the rules; the published description says it at once.
Password = Annotated[str, Meta(max_length=8192, extra_json_schema={"maxLength": 1024})]
Limit = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Role = Literal["admin", "user", "service", "guest"]


class _Body(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of bodies."""


class LimitFields(_Body, frozen=True):
    """An account's or a key's own limits."""

    max_requests_per_minute: Limit | None = None
    max_requests_per_hour: Limit | None = None
    max_tokens_per_minute: Limit | None = None
    max_concurrent_requests: Limit | None = None
    max_input_length: Limit | None = None

    def limits(self) -> KeyLimits:
        return KeyLimits(
            self.max_requests_per_minute,
            self.max_requests_per_hour,
            self.max_tokens_per_minute,
            self.max_concurrent_requests,
            self.max_input_length,
        )


class LoginRequest(_Body, frozen=True):
    username: Name
    password: Password


class PasswordRequest(_Body, frozen=True):
    current_password: Password
    new_password: Password


class KeyRequest(_Body, frozen=True):
    """What everybody may ask for."""

    name: Name
    permissions: Annotated[list[Name], Meta(max_length=64)] | None = None
    expires_in_days: Annotated[int, Meta(ge=1, le=3650)] | None = None
    models: Annotated[list[Name], Meta(min_length=1, max_length=256)] | None = None
    limits: LimitFields = LimitFields()


class ManagedKeyRequest(KeyRequest, frozen=True):
    """What a manager of users may ask for besides: another owner, a redaction profile."""

    owner: Name | None = None
    redact_profile: Literal["default", "strict", "secrets"] | None = None


class UserRequest(_Body, frozen=True):
    username: Name
    password: Password
    role: Role = "user"
    limits: LimitFields = LimitFields()


class UserPatch(_Body, frozen=True):
    role: Role | None = None
    disabled: bool | None = None
    limits: LimitFields | None = None


class ConfigPatch(_Body, frozen=True):
    """Sections as in the file, reloadable keys only; which those are is the configuration's matter."""

    server: dict[str, Any] = {}
    security: dict[str, Any] = {}
    models: dict[str, Any] = {}
    engine: dict[str, Any] = {}
    storage: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    telemetry: dict[str, Any] = {}
