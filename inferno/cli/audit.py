"""`inferno audit`: read, search and prove the audit log. Reads the files themselves, beside a live writer or without."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click
import msgspec

from ..config import Settings
from ..datadir import DataDir
from ..errors import ConfigError
from .identity import read_secret
from .options import config_option, json_option, settings_for_reading

_PAGE = 1000
UNREADABLE = 2


@click.group(
    epilog="""\b
Examples:
  inferno audit tail
  inferno audit search --event auth.login --result failure --since 2026-01-01
  inferno audit verify && echo intact
  inferno audit fingerprint            asks for a secret; search the log for what it prints
"""
)
def audit() -> None:
    """Read, search and prove the audit log."""


@audit.command("tail", epilog="\b\nExamples:\n  inferno audit tail -n 50 --follow")
@click.option("-n", "count", type=click.IntRange(1, _PAGE), default=20, show_default=True)
@click.option("--follow", is_flag=True, help="Go on until Ctrl-C.")
@config_option
@json_option
def tail(count: int, follow: bool, config: str | None, as_json: bool) -> None:
    """Show the newest records, oldest of them first."""
    settings = settings_for_reading(config)
    last = 0
    while True:
        for values in reversed(_search(settings, {}, count if last == 0 else _PAGE)):
            if values["seq"] > last:
                last = values["seq"]
                _show(values, as_json)
        if not follow:
            return
        time.sleep(0.5)


@audit.command("search", epilog="\b\nExamples:\n  inferno audit search --actor acct_1 --event key.create --json")
@click.option("--since", help="RFC 3339 time or date, UTC.")
@click.option("--until", help="RFC 3339 time or date, UTC; not included.")
@click.option("--actor")
@click.option("--event")
@click.option("--result", type=click.Choice(["success", "failure", "error"]))
@click.option("--ip")
@click.option("--target")
@click.option("--request-id")
@click.option("--text", help="Stands somewhere in the record, such as a fingerprint.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@config_option
@json_option
def search(limit: int, config: str | None, as_json: bool, **wanted: str | None) -> None:
    """Show matching records, newest first."""
    settings = settings_for_reading(config)
    for values in _search(settings, {name: value for name, value in wanted.items() if value is not None}, limit):
        _show(values, as_json)


@audit.command("verify", epilog="\b\nExamples:\n  inferno audit verify\n  inferno audit verify --anchor 1200:9f…c4")
@click.option("--head", metavar="SEQ:HASH", help="A head kept elsewhere; the log must hold it.")
@click.option("--anchor", metavar="SEQ:HASH", help="Start after this record: older files were taken away.")
@config_option
@json_option
def verify(head: str | None, anchor: str | None, config: str | None, as_json: bool) -> None:
    """Prove that the log is whole. Exit status: 0 intact, 1 broken (the first bad record is named), 2 unreadable."""
    from ..security import audit_log
    from ..security.host import audit_place
    from ..security.verbs import verify_place

    settings = settings_for_reading(config)
    try:
        place = audit_place(settings, DataDir(settings.storage.data_dir).read_key("audit"))
    except ConfigError as error:
        click.echo(f"inferno: {error}", err=True)
        sys.exit(UNREADABLE)
    if head is None and anchor is None:
        found = verify_place(place)
    else:
        wanted = _place(head) if head is not None else audit_log.read_head(place.head_path, place.key)
        found = audit_log.verify(
            place.path, place.key, wanted, anchor=None if anchor is None else _place(anchor)
        )
    verdict = ("intact", "broken", "unreadable")[found.status]
    if as_json:
        click.echo(json.dumps({**msgspec.structs.asdict(found), "verdict": verdict}))
    elif found.status == audit_log.INTACT:
        click.echo(f"intact: {found.records} records, head {found.last_seq}:{found.last_hash}")
    else:
        where = f" at record {found.first_bad}" if found.first_bad is not None else ""
        file = f" of {found.file}" if found.file else ""
        click.echo(f"{verdict}{where}{file}: {found.reason}")
    sys.exit(found.status)


@audit.command(
    "fingerprint", epilog="\b\nExamples:\n  inferno audit fingerprint < leaked.txt\n  inferno audit fingerprint --search"
)
@click.option("--file", "from_file", metavar="FILE", help="Read the secret from a file.")
@click.option("--search", "do_search", is_flag=True, help="Search the log for it.")
@config_option
@json_option
def fingerprint(from_file: str | None, do_search: bool, config: str | None, as_json: bool) -> None:
    """Print how a secret (a key, a token) appears in the log. It is read from a prompt, stdin or a file."""
    from ..security import keys

    settings = settings_for_reading(config)
    pepper = DataDir(settings.storage.data_dir).read_key("pepper")
    secret = read_secret("Secret", from_stdin=not sys.stdin.isatty(), from_file=from_file)
    found = keys.fingerprint(keys.fingerprint_key(pepper), secret)
    key_id = keys.key_id_of(secret)
    if not do_search:
        said = {"fingerprint": found, "key_id": key_id}
        click.echo(json.dumps(said) if as_json else found + (f"  (key {key_id})" if key_id else ""))
        return
    rows = _search(settings, {"text": f"credential:{found}"}, _PAGE)
    if key_id is not None:
        rows += _search(settings, {"target": key_id}, _PAGE)
    for values in sorted(rows, key=lambda row: int(row["seq"])):
        _show(values, as_json)


def _search(settings: Settings, wanted: dict[str, str], limit: int) -> list[dict[str, Any]]:
    from pathlib import Path

    from ..security import audit_log

    path = Path(settings.security.audit_path)
    filters = msgspec.convert(wanted, audit_log.Filter)
    rows: list[dict[str, Any]] = []
    before: int | None = None
    while len(rows) < limit:
        page = audit_log.search(path, filters, num_rows=min(_PAGE, limit - len(rows)), before=before)
        if not page:
            break
        rows += page
        before = page[-1]["seq"]
    return rows


def _show(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(values))
        return
    parts = [f"{name}={values[name]!a}" for name in ("actor", "ip", "target", "reason", "request_id") if values.get(name)]
    click.echo(f"{values['seq']:>8} {values['time'][:19]}Z {values['event']:<16} {values['result']:<8} {' '.join(parts)}")


def _place(text: str) -> tuple[int, str]:
    seq, _, digest = text.partition(":")
    if not seq.isdigit() or len(digest) != 64:
        raise click.UsageError("expected SEQ:HASH, as `inferno audit verify` prints them")
    return int(seq), digest
