"""Where values come from: the TOML file, INFERNO_ variables, flags; each value with the place that a refusal names.

Reads and checks single values only; the rules between keys are in inferno.config.rules.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..errors import ConfigError
from .keys import KEYS, MODEL_KEYS, SECTION_KEYS, VARIABLES, Key
from .schema import MODEL_NAME

MAX_FILE_BYTES = 1 << 20
SYSTEM_FILE = Path("/etc/inferno/config.toml")

# Variables that are ours and no configuration key.
OTHER_VARIABLES = frozenset(
    {
        "INFERNO_CONFIG",
        "INFERNO_API_KEY",
        "INFERNO_JWT_SECRET",
        "INFERNO_JWT_SECRET_FILE",
        "INFERNO_JWT_SECRET_PREVIOUS",
        "INFERNO_JWT_SECRET_PREVIOUS_FILE",
        "INFERNO_ADMIN_PASSWORD",
        "INFERNO_ADMIN_PASSWORD_FILE",
        "INFERNO_SECRETS_FD",
        "INFERNO_TEST_DATA",
        # what building and installing read (setup.py, deploy/)
        "INFERNO_BUILD",
        "INFERNO_CACHE",
        "INFERNO_LLAMA_CMAKE",
        "INFERNO_LLAMA_PORTABLE",
        "INFERNO_SANITIZED",
        "INFERNO_VENV",
    }
)
_SERVICE_LINKS = re.compile(
    r"INFERNO_(?:[A-Z0-9_]+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_SERVICE_PORT = re.compile(r"INFERNO_(?:[A-Z0-9_]+_)?PORT")
_SERVICE_URL = re.compile(r"(?:tcp|udp|sctp)://")
_HEADER = re.compile(r"\s*\[\[?\s*(?P<name>[^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_LINE_OF_ERROR = re.compile(r"\s*\(at line (\d+), column (\d+)\)|\s*\(at end of document\)")


class Value(Struct, frozen=True):
    """A checked value and where it stands."""

    value: Any
    where: str


class Found(Struct):
    """All values from all sources; later sources replace earlier ones."""

    values: dict[str, Value] = {}
    models: dict[str, dict[str, Value]] = {}
    warnings: list[str] = []


def nearest(name: str, known: Any) -> str:
    """Return " (did you mean …?)" for the nearest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def refuse(key: Key, value: Any, where: str) -> ConfigError:
    """Return the error for a value that `key` cannot have. Values of URLs may hold a password: never shown."""
    got = "" if key.is_url else f", not {_shown(value)}"
    return ConfigError(f"{where}: {key.full_name} must be {key.expected}{got}")


def _shown(value: Any) -> str:
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= 80 else text[:77] + "…"


# ---------------------------------------------------------------- the file


def find_file(flag: str | None, environ: Mapping[str, str], folder: Path) -> Path | None:
    """Return the configuration file: --config, $INFERNO_CONFIG, ./config.toml, /etc/inferno/config.toml, or None."""
    for name, given in (("--config", flag), ("INFERNO_CONFIG", environ.get("INFERNO_CONFIG"))):
        if given is None or (name == "INFERNO_CONFIG" and not given):
            continue
        path = folder / given
        if not path.exists():
            raise ConfigError(f"{name}: expected a configuration file, but {path} does not exist")
        return path
    for path in (folder / "config.toml", SYSTEM_FILE):
        if path.exists():
            return path
    return None


def read_file(path: Path, found: Found) -> None:
    """Add the values of a TOML file. Raises ConfigError with the file and line."""
    text = _read_text(path)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = _LINE_OF_ERROR.search(str(error))
        line = place.group(1) if place and place.group(1) else str(text.count("\n") + 1)
        raise ConfigError(f"{path}, line {line}: not TOML: {_LINE_OF_ERROR.sub('', str(error))}") from None
    lines = text.splitlines()
    for section, content in document.items():
        where = f"{path}, line {_line_of(lines, section)}"
        if section not in SECTION_KEYS:
            what = "section" if isinstance(content, dict) else "key outside of a section"
            raise ConfigError(f"{where}: {section} is not a known {what}{nearest(section, SECTION_KEYS)}")
        if not isinstance(content, dict):
            raise ConfigError(f"{where}: {section} must be a section, written [{section}]")
        for name, value in content.items():
            where = f"{path}, line {_line_of(lines, section, name)}"
            if section == "models" and name not in SECTION_KEYS["models"] and isinstance(value, dict):
                found.models[name] = _model(path, lines, name, value, where)
                continue
            key = SECTION_KEYS[section].get(name)
            if key is None:
                raise ConfigError(
                    f"{where}: {section}.{name} is not a known key{nearest(name, SECTION_KEYS[section])}"
                )
            found.values[key.full_name] = Value(_checked(key, value, where, path.parent), where)


def _model(path: Path, lines: list[str], name: str, table: dict[str, Any], where: str) -> dict[str, Value]:
    if re.search(MODEL_NAME, name) is None or not name.isprintable() or name == "default":
        raise ConfigError(
            f'{where}: a model\'s name must be letters, digits and . _ : / - (at most 128, not "default")'
        )
    entry: dict[str, Value] = {}
    for attribute, value in table.items():
        place = f"{path}, line {_line_of(lines, 'models', name, attribute)}"
        key = MODEL_KEYS.get(attribute)
        if key is None:
            raise ConfigError(
                f"{place}: models.{name}.{attribute} is not a known key{nearest(attribute, MODEL_KEYS)}"
            )
        entry[attribute] = Value(_checked(key, value, place, path.parent), place)
    if "path" not in entry:
        raise ConfigError(f"{where}: models.{name} needs path, the GGUF file")
    return entry


def _checked(key: Key, value: Any, where: str, folder: Path) -> Any:
    try:
        checked = key.check(value)
    except ValueError:
        raise refuse(key, value, where) from None
    return _absolute(checked, folder) if key.is_path else checked


def _absolute(text: str, folder: Path) -> str:
    """Take a relative path from `folder`; <data> is put in when the data directory is known."""
    if text.startswith("<data>"):
        return text
    return os.path.abspath(folder / os.path.expanduser(text))


def _read_text(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError(f"{path}: expected a regular file")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8") from None


def _line_of(lines: list[str], *parts: str) -> int:
    """Return the line on which a key of a parsed document stands (tomllib keeps none): the best match of `parts`.

    A table header opens a scope; the deepest prefix of `parts` that was seen decides where nothing better is found
    (inline tables). Multi-line strings are stepped over.
    """
    best, best_depth = 1, 0
    scope: tuple[str, ...] = ()
    quote: str | None = None
    for number, line in enumerate(lines, start=1):
        if quote is not None:
            if quote in line:
                quote = None
            continue
        header = _HEADER.match(line)
        if header is not None:
            scope = _split(header.group("name"))
            here = scope
        else:
            name, equals, rest = line.partition("=")
            if not equals or name.lstrip().startswith("#"):
                continue
            here = scope + _split(name)
            for mark in ('"""', "'''"):
                if rest.count(mark) % 2:
                    quote = mark
        depth = len(here) if here == parts[: len(here)] else 0
        if depth > best_depth:
            best, best_depth = number, depth
    return best


def _split(name: str) -> tuple[str, ...]:
    """Split a dotted TOML key into its parts, quotes taken off."""
    parts = re.findall(r"\"[^\"]*\"|'[^']*'|[^.\s]+", name)
    return tuple(part.strip("\"'") for part in parts)


# ---------------------------------------------------------------- the environment and flags


def read_environment(environ: Mapping[str, str], folder: Path, found: Found) -> None:
    """Add the values of INFERNO_ variables. Raises ConfigError for one that is not known."""
    ignored = []
    for name, text in sorted(environ.items()):
        if not name.startswith("INFERNO_") or name in OTHER_VARIABLES:
            continue
        if _SERVICE_LINKS.fullmatch(name) or (_SERVICE_PORT.fullmatch(name) and _SERVICE_URL.match(text)):
            ignored.append(name)
            continue
        key = VARIABLES.get(name)
        if key is None:
            known = sorted({*VARIABLES, *OTHER_VARIABLES} - {"INFERNO_SECRETS_FD"})
            hint = nearest(name, known)
            if name.startswith("INFERNO_MODELS_") and not hint:
                hint = "; models by name stand in the configuration file only"
            raise ConfigError(f"{name}: not a known variable{hint}")
        try:
            value = key.parse(text)
        except ValueError:
            raise refuse(key, text, name) from None
        found.values[key.full_name] = Value(_checked(key, value, name, folder), name)
    if ignored:
        found.warnings.append(
            f"ignored, since Kubernetes makes them for a Service of this name: {', '.join(ignored)}"
        )


def read_flags(flags: Mapping[str, Any], folder: Path, found: Found) -> None:
    """Add the values of flags: full key name → value; None: not given."""
    for name, value in flags.items():
        if value is None:
            continue
        key = KEYS[name]
        where = "--" + key.name.replace("_", "-")
        found.values[name] = Value(_checked(key, value, where, folder), where)


_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


def read_model_flags(texts: list[str], folder: Path, found: Found) -> None:
    """Add the models of --model: NAME=PATH, or PATH whose file name gives the name."""
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or "/" in name or os.path.exists(text):
            name, path = "", text
        if not name:
            stem = os.path.basename(path)
            stem = stem[:-5] if stem.lower().endswith(".gguf") else stem
            name = re.sub(r"[^A-Za-z0-9._:-]+", "-", _SHARD.sub("", stem)).strip("._:-")
        if re.search(MODEL_NAME, name) is None or name == "default":
            raise ConfigError(
                "--model: expected NAME=PATH or PATH, with a name of letters, digits and . _ : -"
            )
        found.models[name] = {"path": Value(_checked(MODEL_KEYS["path"], path, "--model", folder), "--model")}
