"""`inferno keys`: API keys, beside a running server or without one. A key's text is printed once, to standard output."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from ..datadir import write_new
from .identity import call
from .options import config_option, json_option, settings_for_reading


@click.group(
    epilog="""\b
Examples:
  inferno keys create laptop --user ann
  inferno keys create ci --user build --permission run_inference --model tiny --days 30 --json
  inferno keys list
  inferno keys revoke Ab3dEf6hIj9k
"""
)
def keys() -> None:
    """Make, list and revoke API keys."""


@keys.command("create", epilog="\b\nExamples:\n  inferno keys create laptop --user ann --output ann.key")
@click.argument("name", required=False)
@click.option("--name", "name_option", metavar="NAME", help="The key's name, as an option.")
@click.option("--user", default="admin", show_default=True, help="The owner, by name or id.")
@click.option("--permission", "permissions", multiple=True, help="A permission; repeatable. Default: inference.")
@click.option("--days", type=int, help="Lifetime in days.")
@click.option("--model", "models", multiple=True, help="A model that the key may use; repeatable. Default: all.")
@click.option("--redact-profile", type=click.Choice(["default", "strict", "secrets"]))
@click.option("--max-requests-per-minute", type=int)
@click.option("--max-requests-per-hour", type=int)
@click.option("--max-tokens-per-minute", type=int)
@click.option("--max-concurrent-requests", type=int)
@click.option("--max-input-length", type=int)
@click.option("--replace", is_flag=True, help="Revoke the owner's keys of this name first.")
@click.option("--output", metavar="FILE", help="Write the key to a new private file in place of printing it.")
@config_option
@json_option
def create(
    name: str | None,
    name_option: str | None,
    user: str,
    permissions: tuple[str, ...],
    days: int | None,
    models: tuple[str, ...],
    redact_profile: str | None,
    replace: bool,
    output: str | None,
    config: str | None,
    as_json: bool,
    **limits: int | None,
) -> None:
    """Make a key. It is shown this once."""
    settings = settings_for_reading(config)
    if (name is None) == (name_option is None):
        raise click.UsageError("name the key once: inferno keys create NAME")
    arguments: dict[str, Any] = {"user": user, "name": name or name_option, "replace": replace}
    if permissions:
        arguments["permissions"] = list(permissions)
    if models:
        arguments["models"] = list(models)
    if days is not None:
        arguments["expires_in_days"] = days
    if redact_profile is not None:
        arguments["redact_profile"] = redact_profile
    arguments["limits"] = {name: value for name, value in limits.items() if value is not None}
    if output is not None and os.path.lexists(output):
        raise click.UsageError(f"{output} exists; a key is written to a new file only")
    made = call(settings, "keys.create", arguments)
    if output is not None:
        write_new(Path(output), made.pop("key") + "\n")
    if as_json:
        click.echo(json.dumps(made, ensure_ascii=False))
    elif output is not None:
        click.echo(f"key {made['id']} of {user}, until {made['expires_at']}: {output}")
    else:
        click.echo(f"key {made['id']} of {user}, until {made['expires_at']}; it is not shown again:", err=True)
        click.echo(made["key"])


@keys.command("list", epilog="\b\nExamples:\n  inferno keys list --user ann --json")
@click.option("--user", help="Only keys of this account.")
@config_option
@json_option
def list_keys(user: str | None, config: str | None, as_json: bool) -> None:
    """Show keys: never their text."""
    settings = settings_for_reading(config)
    found: list[dict[str, Any]] = []
    base: dict[str, Any] = {"limit": 500} if user is None else {"limit": 500, "user": user}
    while page := call(settings, "keys.list", {**base, "after": found[-1]["id"] if found else ""}):
        found += page
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    for key in found:
        state = "expired" if key["expired"] else f"until {key['expires_at'][:10]}"
        used = "never used" if key["last_used_at"] is None else f"used {key['last_used_at'][:19]}Z"
        click.echo(f"{key['id']}  …{key['last_four']}  {key['name']:<24} {state:<18} {used}  {','.join(key['permissions'])}")


@keys.command("revoke", epilog="\b\nExamples:\n  inferno keys revoke Ab3dEf6hIj9k")
@click.argument("key_id")
@config_option
@json_option
def revoke(key_id: str, config: str | None, as_json: bool) -> None:
    """Revoke a key by its id: it fails from the next request on, on every worker."""
    if key_id.startswith("inf_"):
        raise click.UsageError("give the key's id (see inferno keys list), not the key: command lines are public")
    done = call(settings_for_reading(config), "keys.revoke", {"key": key_id})
    click.echo(json.dumps(done) if as_json else f"key {key_id} is revoked")
