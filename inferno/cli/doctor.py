"""`inferno doctor`: is this machine, build and configuration fit to stand in front of users?"""

from __future__ import annotations

import json
import sys

import click
import msgspec

from .. import doctor as diagnosis
from .options import config_option, json_option

_COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}


@click.command(
    epilog="""\b
Examples:
  inferno doctor                                 every check, with what to do
  inferno doctor --config /etc/inferno/config.toml --json
  inferno doctor --live                          does the server answer? (health checks)
"""
)
@config_option
@json_option
@click.option("--live", is_flag=True, help="Only ask whether the server runs; exit 0 or 1.")
def doctor(config: str | None, as_json: bool, live: bool) -> None:
    """Check machine, build, configuration and security.

    Every line shows a control, its value in force and a verdict; what is not right shows its fix. Works before the
    first start and beside a running server. Exit 1 when a check fails.
    """
    if live:
        sys.exit(0 if diagnosis.is_live(config) else 1)
    checks = diagnosis.examine(config)
    ok = all(check.verdict != "fail" for check in checks)
    if as_json:
        click.echo(json.dumps({"ok": ok, "checks": [msgspec.to_builtins(check) for check in checks]}, indent=2))
        sys.exit(0 if ok else 1)
    width = max(len(check.title) for check in checks)
    for check in checks:
        mark = click.style(f"{check.verdict:<4}", fg=_COLOURS[check.verdict], bold=check.verdict != "pass")
        click.echo(f"{mark}  {check.title:<{min(width, 60)}}  {check.value}")
        if check.fix and check.verdict != "pass":
            click.echo(f"      → {check.fix}")
    counts = {verdict: sum(1 for check in checks if check.verdict == verdict) for verdict in _COLOURS}
    click.echo(f"\n{counts['pass']} pass, {counts['warn']} warnings, {counts['fail']} failures")
    sys.exit(0 if ok else 1)
