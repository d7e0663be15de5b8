"""The `inferno` command: a group whose commands are imported when they are used.

The table below is all that `inferno --help` reads, so help is instant and loads nothing heavy. Errors of ours end with
their own exit code: 78 for the configuration, 1 for a start that is refused and for what a server or engine refuses.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

import click

from .. import __version__
from ..errors import ApiError, InfernoError

# name → (module:attribute, what it does). A command is there when its module is.
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("inferno.cli.init:init", "Make a data directory: configuration, secrets, keys."),
    "serve": ("inferno.cli.serve:serve", "Serve models over an OpenAI-compatible API."),
    "chat": ("inferno.cli.chat:chat", "Talk with a model in the terminal."),
    "run": ("inferno.cli.chat:run", "Answer one prompt and end."),
    "models": ("inferno.cli.models:models", "List, inspect, add, verify and remove models."),
    "users": ("inferno.cli.users:users", "Manage accounts."),
    "keys": ("inferno.cli.keys:keys", "Make, list and revoke API keys."),
    "audit": ("inferno.cli.audit:audit", "Read, search and prove the audit log."),
    "scan": ("inferno.cli.guards:scan", "Try the input guard on text."),
    "redact": ("inferno.cli.guards:redact", "Try the output redaction on text."),
    "doctor": ("inferno.cli.doctor:doctor", "Check machine, build, configuration and security."),
    "bench": ("inferno.cli.bench:bench", "Measure an OpenAI-compatible server under load."),
}

_EPILOG = """\b
Examples:
  inferno init                              make config.toml, secrets and keys here
  inferno serve --model tiny=tiny.gguf      serve one model on 127.0.0.1:8080
  inferno chat tiny                         talk with it

A command's own help has examples too: inferno COMMAND --help
"""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, (target, _) in COMMANDS.items() if _exists(target)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None or not _exists(entry[0]):
            return None
        module, _, attribute = entry[0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, COMMANDS[name][1]) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _exists(target: str) -> bool:
    return importlib.util.find_spec(target.partition(":")[0]) is not None


@click.group(cls=LazyGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="inferno")
def cli() -> None:
    """Inferno: the LLM inference server that is secure from its first start."""


def main(arguments: list[str] | None = None) -> Any:
    """Run a command; the program's entry."""
    try:
        cli.main(args=arguments, prog_name="inferno")
    except ApiError as error:
        click.echo(f"inferno: {error.message}", err=True)
        sys.exit(1)
    except InfernoError as error:
        click.echo(f"inferno: {error}", err=True)
        sys.exit(getattr(error, "exit_code", 1))
