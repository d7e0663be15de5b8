"""`inferno scan` and `inferno redact`: try the guards on text, with no server and no configuration needed.

Input is plain text, or JSON lines whose objects have `id` and `text`: the first line decides. For JSON lines each gives
one line of JSON; plain text gives one JSON object with id null (scan) or the redacted text itself (redact). The modes
come from INFERNO_SECURITY_SCAN_CONTENT and its kin, else from --config, else they are the defaults.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import click

from ..errors import ConfigError
from .options import config_option

_SCAN_MODES = ("off", "report", "block")
_PROFILES = ("default", "strict", "secrets")


def _setting(config: str | None, key: str, allowed: tuple[str, ...], default: str) -> str:
    """Return one key of [security]; nothing else of a configuration is asked for, so that any file will do."""
    source = f"INFERNO_SECURITY_{key.upper()}"
    value: Any = os.environ.get(source)
    if value is None and config is not None:
        source = f"{config}, security.{key}"
        value = _section(config, "security").get(key)
    if value is None:
        return default
    if value not in allowed:
        raise ConfigError(f"{source}: expected one of {', '.join(allowed)}")
    return str(value)


def _section(config: str, name: str) -> dict[str, Any]:
    try:
        section = tomllib.loads(Path(config).read_text(encoding="utf-8")).get(name, {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{config}: cannot be read ({type(error).__name__})") from None
    return section if isinstance(section, dict) else {}


def _own_rules(config: str | None) -> tuple[Path, ...]:
    """Return the rules.toml of a configuration's data directory, where there is one."""
    from ..security.rules import operator_rules

    if config is None:
        return ()
    folder = _section(config, "storage").get("data_dir")
    return operator_rules(Path(config).parent / folder if isinstance(folder, str) else Path(config).parent)


def _decode(line: str) -> dict[str, Any] | None:
    if not line.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return value
    return None


def _entries(file: TextIO) -> Iterator[tuple[Any, str, bool]]:
    """Yield (id, text, whether the input is JSON lines) for each text."""
    data = file.read()
    lines = data.split("\n")
    first = next((line for line in lines if line.strip()), "")
    if _decode(first) is None:
        yield None, data, False
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        entry = _decode(line)
        if entry is None:
            raise click.ClickException(f"line {number}: expected a JSON object with id and text")
        yield entry.get("id"), entry["text"], True


def _print(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, ensure_ascii=True))


@click.command(
    epilog="""\b
Examples:
  inferno scan prompt.txt
  echo "' OR 1=1 --" | inferno scan
  inferno scan --as identifier names.jsonl
"""
)
@click.option(
    "--as",
    "place",
    type=click.Choice(["content", "identifier"]),
    default="content",
    show_default=True,
    help="Treat the text as message content or as a name.",
)
@click.option(
    "--rules",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="One more rule file (TOML); may be repeated.",
)
@config_option
@click.argument("file", type=click.File("r", encoding="utf-8", errors="surrogateescape"), default="-")
def scan(place: str, rules: tuple[Path, ...], config: str | None, file: TextIO) -> None:
    """Say what the input guard does with text: {"id", "action", "categories", "score"}.

    FILE is plain text or JSON lines with id and text; standard input without it. A newline at the very end of plain
    text that is checked as a name is not part of the name. With --config, the rules.toml of its data directory counts.
    """
    from ..security.screening import Screener

    screener = Screener(
        scan_content=_setting(config, "scan_content", _SCAN_MODES, "report"),
        scan_identifiers=_setting(config, "scan_identifiers", _SCAN_MODES, "block"),
        extra_rules=(*_own_rules(config), *rules),
    )
    for entry_id, text, is_lines in _entries(file):
        if place == "identifier":
            verdict = screener.identifier("name", text if is_lines else text.removesuffix("\n"))
        else:
            verdict = screener.content([text])
        categories = list(verdict.categories)
        _print({"id": entry_id, "action": verdict.action, "categories": categories, "score": verdict.score})


@click.command(
    epilog="""\b
Examples:
  inferno redact answer.txt
  inferno redact --profile secrets --split 4 answers.jsonl
"""
)
@click.option(
    "--profile", type=click.Choice(_PROFILES), help="What is covered; else redact_profile, else default."
)
@click.option(
    "--split", type=click.IntRange(min=1), metavar="N", help="Feed N characters at a time, as a stream would."
)
@config_option
@click.argument("file", type=click.File("r", encoding="utf-8", errors="surrogateescape"), default="-")
def redact(profile: str | None, split: int | None, config: str | None, file: TextIO) -> None:
    """Replace secrets and personal data by markers, as the server does in answers.

    FILE is plain text (the result is printed as it is) or JSON lines with id and text (JSON lines with id, text and
    kinds); standard input without it.
    """
    from inferno_native.redactor import Redactor

    chosen = profile or _setting(config, "redact_profile", _PROFILES, "default")
    for entry_id, text, is_lines in _entries(file):
        redactor = Redactor(chosen)
        if split is None:
            result = redactor.redact(text)
        else:
            pieces = [redactor.feed(text[start : start + split]) for start in range(0, len(text), split)]
            result = "".join(pieces) + redactor.finish()
        if is_lines:
            _print({"id": entry_id, "text": result, "kinds": sorted(redactor.counts)})
        else:
            click.echo(result.encode("utf-8", "surrogateescape"), nl=False)
