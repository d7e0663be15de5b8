"""The API description as one HTML page: made here from the document, without scripts and without any other file.

Pure: a document in, bytes out. The page's only style sheet is allowed by its hash; everything else is forbidden by its
content security policy, so nothing is ever loaded from anywhere. Front workers.
"""

from __future__ import annotations

import base64
import hashlib
import html
from typing import Any

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}
h1,h2{line-height:1.2}code,pre{font:0.9em/1.4 ui-monospace,monospace}
details{border:1px solid #ccc;border-radius:4px;margin:.5rem 0;padding:.4rem .8rem}
summary{cursor:pointer}.m{display:inline-block;min-width:4.2em;font-weight:700}
table{border-collapse:collapse;width:100%;margin:.5rem 0}td,th{border-top:1px solid #ddd;padding:.25rem .5rem;
text-align:left;vertical-align:top}td code{overflow-wrap:anywhere}
@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#161616}details,td,th{border-color:#444}}
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def render(document: dict[str, Any]) -> bytes:
    """Return the page."""
    info = document["info"]
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(info['title'])} API</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_text(info['title'])} API {_text(info['version'])}</h1><p>{_marked(info['description'])}</p>",
        "<p>The same as data: <code>GET /openapi.json</code>.</p>",
    ]
    tags: dict[str, list[str]] = {}
    for path, item in document["paths"].items():
        for method in ("get", "post", "patch", "delete"):
            if method in item:
                operation = item[method]
                shared = item.get("parameters", [])
                tags.setdefault(operation["tags"][0], []).append(_operation(method, path, operation, shared))
    for tag, operations in tags.items():
        parts += [f"<h2>{_text(tag.capitalize())}</h2>", *operations]
    parts.append("<h2>Schemas</h2>")
    parts += [_schema(name, schema) for name, schema in sorted(document["components"]["schemas"].items())]
    parts.append("</body></html>\n")
    return "".join(parts).encode()


def _operation(method: str, path: str, operation: dict[str, Any], shared: list[Any]) -> str:
    rows = [
        f"<tr><td><code>{_text(entry['name'])}</code> ({_text(entry['in'])})</td>"
        f"<td>{_type(entry['schema'])}</td><td>{_marked(entry.get('description', ''))}</td></tr>"
        for entry in [*shared, *operation.get("parameters", [])]
    ]
    body = operation.get("requestBody")
    if body is not None:
        rows.append(f"<tr><td>body</td><td>{_type(body['content']['application/json']['schema'])}</td><td></td></tr>")
    statuses = []
    for status, answer in operation["responses"].items():
        kinds = ", ".join(
            f"{_text(media)} {_type(content['schema'])}" for media, content in answer["content"].items()
        )
        statuses.append(f"<tr><td>{_text(status)}</td><td>{kinds}</td><td>{_marked(answer['description'])}</td></tr>")
    return (
        f'<details id="{_text(operation["operationId"])}"><summary><code><span class="m">{method.upper()}</span> '
        f"{_text(path)}</code> {_text(operation['summary'])}</summary><p>{_marked(operation['description'])}</p>"
        + (f"<table>{''.join(rows)}</table>" if rows else "")
        + f"<table><tr><th>Status</th><th>Content</th><th></th></tr>{''.join(statuses)}</table></details>"
    )


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = "".join(
        f"<tr><td><code>{_text(field)}</code>{' *' if field in required else ''}</td><td>{_type(entry)}</td>"
        f"<td>{_marked(entry.get('description', ''))}</td></tr>"
        for field, entry in schema.get("properties", {}).items()
    )
    words = _marked(schema.get("description", ""))
    return (
        f'<details id="schema-{_text(name)}"><summary><code>{_text(name)}</code></summary>'
        f"<p>{words} Fields with * are required.</p><table>{rows}</table></details>"
    )


def _type(schema: dict[str, Any]) -> str:
    """Write a schema in a few words; one of the components becomes a link to it."""
    if "$ref" in schema:
        name = _text(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(entry) for entry in schema["anyOf"]) + _default(schema)
    if "enum" in schema:
        return " or ".join(f"<code>{_text(str(value))}</code>" for value in schema["enum"]) + _default(schema)
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}{_bounds(schema)}{_default(schema)}"
    return f"{_text(kind)}{_bounds(schema)}{_default(schema)}"


def _bounds(schema: dict[str, Any]) -> str:
    words = {
        "minimum": "≥ {}", "maximum": "≤ {}", "exclusiveMaximum": "&lt; {}", "minLength": "at least {} characters",
        "maxLength": "at most {} characters", "minItems": "at least {}", "maxItems": "at most {}",
        "maxProperties": "at most {}", "pattern": "form <code>{}</code>",
    }  # fmt: skip
    found = [text.format(_text(str(schema[name]))) for name, text in words.items() if name in schema]
    return f" ({', '.join(found)})" if found else ""


def _default(schema: dict[str, Any]) -> str:
    default = schema.get("default")
    return "" if default is None else f", default <code>{_text(str(default))}</code>"


def _marked(text: str) -> str:
    """Escape, and turn `code` into code."""
    pieces = _text(text).split("`")
    if len(pieces) % 2 == 0:
        return _text(text)
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))


def _text(text: str) -> str:
    return html.escape(text, quote=True)
