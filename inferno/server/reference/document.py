"""The OpenAPI 3.1 document of a list of routes: schemas from the structs that validate, policies from the router.

Pure: routes in, a dictionary out. What JSON Schema cannot say (rules between fields, what the text guard refuses) is
answered 400 all the same, and said in the operation's description. Front workers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from starlette.routing import BaseRoute

from ... import __version__
from ...errors import CODES
from ...security.permissions import Policy
from ..routing import ApiRoute
from . import answers
from .operations import OPERATIONS, Described, Schema

_REF = "#/components/schemas/"
_REFUSED_PARTS = frozenset(("ImagePart", "AudioPart", "FilePart"))  # known so that they are refused by name
_EVERY = ("invalid_request", "request_timeout", "uri_too_long", "headers_too_large", "internal_error")
_HOSTED = ("invalid_host",)
_COUNTED = ("rate_limit_exceeded", "store_unavailable")
_PRIVATE = ("ambiguous_credentials", "invalid_api_key", "input_blocked")
_BODIED = (
    "invalid_json",
    "invalid_value",
    "missing_required_parameter",
    "unknown_parameter",
    "unsupported_parameter",
    "request_too_large",
    "unsupported_media_type",
)
_QUERIED = ("invalid_value", "unknown_parameter")
_PARAMETER = re.compile(r"\{([a-z_]+)\}")


def build(routes: Iterable[BaseRoute], *, is_open: bool = False) -> dict[str, Any]:
    """Return the document. `is_open`: authentication is off, no operation needs a credential."""
    found = [route for route in routes if isinstance(route, ApiRoute)]
    kinds = _structs(found)
    _, components = msgspec.json.schema_components(kinds, ref_template=_REF + "{name}")
    bodies = {described.body.__name__ for _, described in _described(found) if described.body is not None}
    for name in bodies:
        _allow_null(components[name])
    for name in _REFUSED_PARTS:
        components.pop(name, None)
    _drop_refused(components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Inferno",
            "version": __version__,
            "description": "GGUF models behind an OpenAI-compatible API. Every answer has `x-request-id`, every error "
            "one form. Routes that answer GET answer HEAD too, without a body.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": {route.path: _path(route, is_open) for route in found},
        "components": {
            "schemas": components,
            "headers": {
                "x-request-id": {
                    "description": "Finds the request in logs, the audit log and traces",
                    "schema": {"type": "string", "pattern": "^req_[0-9a-f]+$"},
                    "required": True,
                },
                "retry-after": {
                    "description": "Seconds to wait",
                    "schema": {"type": "integer", "minimum": 1},
                    "required": True,
                },
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A session token or an API key"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key"},
            },
        },
    }


def _described(routes: Sequence[ApiRoute]) -> Iterable[tuple[ApiRoute, Described]]:
    for route in routes:
        for method in route.operations:
            if method != "HEAD":
                yield route, OPERATIONS[method, route.path]


def _structs(routes: Sequence[ApiRoute]) -> list[Any]:
    kinds: list[Any] = [answers.Error]
    for _, described in _described(routes):
        kinds += [kind for kind in (described.body, described.answer, described.unready) if kind is not None]
    return kinds


def _schema(kind: Any) -> Schema:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_REF + "{name}")
    return schema


def _path(route: ApiRoute, is_open: bool) -> dict[str, Any]:
    item: dict[str, Any] = {}
    names = _PARAMETER.findall(route.path)
    if names:
        item["parameters"] = [_path_parameter(name, route) for name in names]
    for method, operation in route.operations.items():
        if method != "HEAD":
            item[method.lower()] = _operation(method, route.path, operation.policy, is_open)
    return item


def _path_parameter(name: str, route: ApiRoute) -> dict[str, Any]:
    """Inner slashes of an encoded parameter come as %2F; `.` and `..` are no names."""
    characters = "A-Za-z0-9._~:@+/-" if route.is_encoded else "A-Za-z0-9._~-"
    pattern = f"^[A-Za-z0-9][{characters}]*$"
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": pattern},
    }


def _operation(method: str, path: str, policy: Policy, is_open: bool) -> dict[str, Any]:
    described = OPERATIONS[method, path]
    codes = _codes(path, policy, described)
    words = [f"Needs {' and '.join(policy.permissions)}." if policy.permissions else "For any authenticated caller."]
    if policy.public:
        words = ["Public."]
    if not policy.buckets:
        words.append("Outside of rate limits and host checks.")
    found: dict[str, Any] = {
        "operationId": _identifier(method, path),
        "summary": described.summary,
        "description": " ".join(words),
        "tags": [_tag(path)],
        "security": [] if policy.public or is_open else [{"bearer": []}, {"apiKey": []}],
        "x-permissions": list(policy.permissions),
    }
    if described.query:
        found["parameters"] = [
            {"name": entry.name, "in": "query", "description": entry.meaning, "schema": entry.schema}
            for entry in described.query
        ]
    if described.body is not None:
        found["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _schema(described.body)}},
        }
    found["responses"] = {str(described.status): _answer(described), **_errors(codes, described)}
    return found


def _identifier(method: str, path: str) -> str:
    words = [word for word in re.split(r"[^A-Za-z0-9]+", path) if word and word != "v1"]
    return "_".join([method.lower(), *words]) if words else "get_root"


def _tag(path: str) -> str:
    if path.startswith("/v1/"):
        return "inference"
    return "administration" if path.startswith("/api/v1/") else "server"


def _codes(path: str, policy: Policy, described: Described) -> set[str]:
    codes = {*_EVERY, *described.codes}
    if policy.buckets:
        codes.update(_HOSTED, _COUNTED)
    if not policy.public:
        codes.update(_PRIVATE)
    if policy.permissions:
        codes.add("insufficient_permissions")
    if described.body is not None:
        codes.update(_BODIED)
    if described.query:
        codes.update(_QUERIED)
    return codes


def _answer(described: Described) -> dict[str, Any]:
    schema: Schema = {"type": "string"} if described.answer is None else _schema(described.answer)
    content: dict[str, Any] = {described.media: {"schema": schema}}
    if described.streams:
        # One event as an object, as later versions of OpenAPI describe streams.
        content["text/event-stream"] = {
            "schema": {
                "type": "object",
                "description": "With `stream: true`: events, the last one with the data `[DONE]`",
                "properties": {"data": {"type": "string"}},
                "required": ["data"],
            }
        }
    return {"description": described.summary, "headers": _headers("x-request-id"), "content": content}


def _errors(codes: set[str], described: Described) -> dict[str, Any]:
    """Return one response for each status, naming the codes that it can carry."""
    by_status: dict[int, list[str]] = {}
    for code in CODES:
        if code in codes:
            by_status.setdefault(CODES[code].status, []).append(code)
    if described.unready is not None:
        by_status.setdefault(503, [])
    found = {}
    for status, names in sorted(by_status.items()):
        schema = _schema(answers.Error)
        if status == 503 and described.unready is not None:
            schema = _schema(described.unready) if not names else {"anyOf": [_schema(described.unready), schema]}
        headers = ("x-request-id", "retry-after") if status in (429, 503) else ("x-request-id",)
        found[str(status)] = {
            "description": "; ".join(f"`{name}`: {CODES[name].meaning}" for name in names) or "Not now.",
            "headers": _headers(*headers),
            "content": {"application/json": {"schema": schema}},
        }
    return found


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _allow_null(schema: Schema) -> None:
    """`null` counts as absent for every optional field of a body (inferno.server.parsing)."""
    required = schema.get("required", ())
    for name, property_ in schema["properties"].items():
        if name in required or any(entry.get("type") == "null" for entry in property_.get("anyOf", ())):
            continue
        default = {"default": property_.pop("default")} if "default" in property_ else {}
        schema["properties"][name] = {"anyOf": [property_, {"type": "null"}], **default}


def _drop_refused(node: Any) -> None:
    """Take the kinds of content parts that are always refused out of every union."""
    if isinstance(node, list):
        for item in node:
            _drop_refused(item)
        return
    if not isinstance(node, dict):
        return
    union = node.get("anyOf")
    if isinstance(union, list):
        union[:] = [entry for entry in union if not _is_refused(entry)]
    discriminator = node.get("discriminator")
    if isinstance(discriminator, dict):
        mapping: Mapping[str, str] = discriminator["mapping"]
        discriminator["mapping"] = {key: ref for key, ref in mapping.items() if ref.removeprefix(_REF) not in _REFUSED_PARTS}
    for value in node.values():
        _drop_refused(value)


def _is_refused(entry: Any) -> bool:
    return isinstance(entry, dict) and str(entry.get("$ref", "")).removeprefix(_REF) in _REFUSED_PARTS
