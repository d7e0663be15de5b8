"""The configuration in writing: the commented config.toml of `inferno init`, and docs/configuration.md.

Both are made from the schema's own sentences, so they name every key and only real keys. Knows no values but defaults.
"""

from __future__ import annotations

import json
import textwrap
from typing import Any

from .keys import MODEL_KEYS, SECTION_KEYS, Key
from .schema import SECTIONS, ModelEntry

_FILE_HEAD = """\
# Inferno's configuration. Every key stands here with its default; take the # away to change one.
# Each key can also be set as INFERNO_<SECTION>_<KEY> in the environment (lists: comma-separated), which wins over
# this file. Relative paths start at this file's folder; <data> is [storage] data_dir. 0 and -1 never mean unlimited.
# (R): taken over by a running server on SIGHUP.
"""

_DOC_HEAD = """\
# Configuration

<!-- Made from the schema by `python -m inferno.config.document`; a test compares. Edit inferno/config/schema.py. -->

Values come from, in this order: command-line flag, environment, file, default. The file is TOML: `--config FILE`, else
`$INFERNO_CONFIG`, `./config.toml`, `/etc/inferno/config.toml`; `inferno init` writes one with every key explained.
Each key is also a variable, `INFERNO_<SECTION>_<KEY>` (lists comma-separated); `[models.<name>]` tables stand in the
file only. Relative paths start at the file's folder (in variables and flags: the current one); `<data>` is
`storage.data_dir`.

An unknown key or variable, a wrong type, a value out of range or an unsafe combination stops the start with exit code
78, naming the file and line or the variable, what was expected, and the nearest known name. 0 and -1 never mean
"unlimited". Variables that Kubernetes makes for a Service named like ours (`INFERNO_SERVICE_HOST`,
`INFERNO_PORT=tcp://…`) are ignored with a warning.

Keys marked **R** are taken over by a running server on `SIGHUP`, which is audited; all others need a restart. `SIGHUP` also
reads certificates and the guards' `<data>/rules.toml` again. `PATCH /api/v1/config` changes **R** keys until the next reload
or restart.
`inferno serve --show-config` prints the effective values and where each came from, never a secret.

## Secrets

Secrets are no configuration keys. With `auth_enabled` the server needs:

| variable | what |
|---|---|
| `INFERNO_JWT_SECRET` | signs login sessions; at least 32 characters and not weak; make one with `openssl rand -base64 48` |
| `INFERNO_ADMIN_PASSWORD` | password of the first account, `admin`, for an empty store; at least 12 characters, not a common one; `openssl rand -base64 16` |
| `INFERNO_JWT_SECRET_PREVIOUS` | optional: the former secret, whose sessions live on while it is rotated |

Each may be given as a file with `…_FILE`; one trailing newline is taken off, nothing else. Both forms with different
values are refused. Where neither is set, `serve` reads `<data>/secrets.env` (mode 0600, lines `NAME=value`), which
`inferno init` makes and systemd's `EnvironmentFile=` understands.

Other variables: `INFERNO_CONFIG` (the file), `INFERNO_API_KEY` (the key that `inferno chat` and `run` send; else that of
`<data>/cli.key`), `HF_TOKEN` (sent to the hub by `inferno models add hf:…`).
"""


def config_file() -> str:
    """Return the commented config.toml."""
    parts = [_FILE_HEAD]
    for section, keys in SECTION_KEYS.items():
        parts.append(f"\n[{section}]  # {SECTIONS[section].__doc__}\n")
        parts.extend(_file_entry(key) for key in keys.values())
        if section == "models":
            parts.append(f"\n# {ModelEntry.__doc__}\n#[models.name]\n")
            parts.extend(_file_entry(key) for key in MODEL_KEYS.values())
    return "".join(parts)


def _file_entry(key: Key) -> str:
    notes = [key.description]
    if key.kind not in ("bool", "str"):
        notes.append(_capital(key.expected) + ".")
    if key.derived:
        notes.append(f"Default: {key.derived}.")
    mark = " (R)" if key.is_reloadable else ""
    comment = textwrap.fill(
        " ".join(notes) + mark,
        108,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    value = key.default if key.default is not None else key.example
    if value is None:
        value = {"bool": True, "str": f"<{key.name}>", "int": key.lowest, "float": key.lowest}.get(
            key.kind, ""
        )
        if key.section == "models.<name>" and key.name == "sha256":
            value = "0" * 64
        elif key.derived.startswith(("<data>", "sqlite:")):
            value = key.derived
    if key.section == "storage" and key.name == "data_dir":
        value = "."
    return f"{comment}\n#{key.name} = {_toml(value)}\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:g}" if isinstance(value, float) else str(value)


def documentation() -> str:
    """Return docs/configuration.md."""
    parts = [_DOC_HEAD]
    for section, keys in SECTION_KEYS.items():
        parts.append(f"\n## [{section}]\n\n{SECTIONS[section].__doc__}\n")
        parts.append(_table(keys))
        if section == "models":
            parts.append(f"\n### [models.NAME]\n\n{ModelEntry.__doc__}\n")
            parts.append(_table(MODEL_KEYS))
    return "".join(parts)


def _table(keys: dict[str, Key]) -> str:
    rows = ["\n| key | default | values | |\n|---|---|---|---|\n"]
    for key in keys.values():
        if key.default is not None:
            default = f"`{_toml(key.default)}`"
        elif key.derived:
            default = f"`{key.derived}`" if key.derived.startswith(("<", "sqlite:")) else key.derived
        else:
            default = "required" if key.is_required else "not set"
        mark = "**R** " if key.is_reloadable else ""
        expected = key.expected.replace("|", "\\|")
        rows.append(f"| `{key.name}` | {default} | {expected} | {mark}{key.description} |\n")
    return "".join(rows)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def main() -> None:
    """Print docs/configuration.md."""
    print(documentation(), end="")


if __name__ == "__main__":
    main()
