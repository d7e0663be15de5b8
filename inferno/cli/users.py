"""`inferno users`: accounts, beside a running server or without one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from .identity import call, read_secret
from .options import config_option, json_option, settings_for_reading

ROLES = ("admin", "user", "service", "guest")
_Function = TypeVar("_Function", bound=Callable[..., Any])


def password_options(function: _Function) -> _Function:
    """Add --password-stdin and --password-file; there is no option that takes the password itself."""
    function = click.option("--password-file", metavar="FILE", help="Read the password from a file.")(function)
    return click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")(function)


@click.group(
    epilog="""\b
Examples:
  inferno users list
  inferno users add ann                                   asks for the password
  pass show ann | inferno users add ann --password-stdin
  inferno users disable ann                               ends its sessions and keys at once
"""
)
def users() -> None:
    """Manage accounts."""


@users.command("list", epilog="\b\nExamples:\n  inferno users list --json")
@config_option
@json_option
def list_users(config: str | None, as_json: bool) -> None:
    """Show all accounts."""
    settings = settings_for_reading(config)
    found: list[dict[str, Any]] = []
    while page := call(settings, "users.list", {"after": found[-1]["id"] if found else "", "limit": 500}):
        found += page
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    for user in found:
        state = "disabled" if user["disabled"] else "active"
        click.echo(f"{user['username']:<24} {user['role']:<8} {state:<9} {user['id']}")


@users.command("add", epilog="\b\nExamples:\n  inferno users add ann --role service --password-file ann.txt")
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), default="user", show_default=True)
@password_options
@config_option
@json_option
def add(
    name: str, role: str, password_stdin: bool, password_file: str | None, config: str | None, as_json: bool
) -> None:
    """Create an account."""
    settings = settings_for_reading(config)
    password = read_secret(
        f"Password of {name}", from_stdin=password_stdin, from_file=password_file, confirm=True
    )
    made = call(settings, "users.add", {"username": name, "password": password, "role": role})
    _say(made, as_json, f"{made['username']} ({made['role']}) was created: {made['id']}")


@users.command("passwd", epilog="\b\nExamples:\n  inferno users passwd ann")
@click.argument("user")
@password_options
@config_option
@json_option
def passwd(
    user: str, password_stdin: bool, password_file: str | None, config: str | None, as_json: bool
) -> None:
    """Set a password and end the account's sessions."""
    settings = settings_for_reading(config)
    password = read_secret(
        f"New password of {user}", from_stdin=password_stdin, from_file=password_file, confirm=True
    )
    changed = call(settings, "users.passwd", {"user": user, "password": password})
    _say(changed, as_json, f"the password of {changed['username']} was changed; its sessions have ended")


@users.command("disable", epilog="\b\nExamples:\n  inferno users disable ann\n  inferno users disable ann --undo")
@click.argument("user")
@click.option("--undo", is_flag=True, help="Enable the account again; its former sessions stay ended.")
@config_option
@json_option
def disable(user: str, undo: bool, config: str | None, as_json: bool) -> None:
    """Disable an account: its sessions and keys fail from the next request on."""
    changed = call(settings_for_reading(config), "users.update", {"user": user, "disabled": not undo})
    _say(changed, as_json, f"{changed['username']} is {'disabled' if changed['disabled'] else 'active'}")


@users.command("role", epilog="\b\nExamples:\n  inferno users role ann service")
@click.argument("user")
@click.argument("role", type=click.Choice(ROLES))
@config_option
@json_option
def role(user: str, role: str, config: str | None, as_json: bool) -> None:
    """Give an account another role."""
    changed = call(settings_for_reading(config), "users.update", {"user": user, "role": role})
    _say(changed, as_json, f"{changed['username']} has the role {changed['role']}")


@users.command("delete", epilog="\b\nExamples:\n  inferno users delete ann --yes")
@click.argument("user")
@click.option("--yes", is_flag=True, help="Do not ask.")
@config_option
@json_option
def delete(user: str, yes: bool, config: str | None, as_json: bool) -> None:
    """Delete an account with its keys."""
    settings = settings_for_reading(config)
    if not yes:
        click.confirm(f"Delete {user} with all of its keys?", abort=True)
    gone = call(settings, "users.delete", {"user": user})
    _say(gone, as_json, f"{gone['username']} was deleted")


def _say(result: dict[str, Any], as_json: bool, text: str) -> None:
    click.echo(json.dumps(result, ensure_ascii=False) if as_json else text)
