"""The command group: what is there, help with examples for every command, exit codes of our errors."""

from __future__ import annotations

import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from inferno import cli as commands
from inferno.cli import COMMANDS, cli, main
from inferno.errors import ApiError, ConfigError, StartError


def leaves(command: click.Command, context: click.Context, name: str) -> list[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        return [(name, command)]
    found = []
    for child in command.list_commands(context):
        sub = command.get_command(context, child)
        assert sub is not None
        found += leaves(sub, click.Context(sub, parent=context, info_name=child), f"{name} {child}".strip())
    return found


ALL = leaves(cli, click.Context(cli, info_name="inferno"), "")


def test_the_contracts_commands_that_are_built_are_listed() -> None:
    names = cli.list_commands(click.Context(cli))
    assert {"init", "serve", "chat", "run", "models"} <= set(names)
    assert set(names) <= set(COMMANDS)
    shown = CliRunner().invoke(cli, ["--help"]).output
    for name in names:
        assert re.search(rf"^  {name} +\S", shown, re.MULTILINE)


def test_a_command_without_its_module_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "later", ("inferno.cli.no_such_module:later", "Not built."))
    assert "later" not in cli.list_commands(click.Context(cli))
    result = CliRunner().invoke(cli, ["later"])
    assert result.exit_code == 2
    assert "No such command 'later'" in result.output


@pytest.mark.parametrize(("name", "command"), ALL, ids=[name for name, _ in ALL])
def test_every_command_has_help_with_an_example(name: str, command: click.Command) -> None:
    result = CliRunner().invoke(cli, [*name.split(), "--help"])
    assert result.exit_code == 0
    assert command.help, name
    assert f"inferno {name}" in result.output.split("\n\n", 1)[1], "an example shows the command itself"
    for line in result.output.splitlines():
        assert len(line) <= 100


@pytest.mark.parametrize(("name", "command"), ALL, ids=[name for name, _ in ALL])
def test_sec_178_no_command_takes_a_secret_as_an_argument(name: str, command: click.Command) -> None:
    for parameter in command.params:
        names = {text.lstrip("-") for text in parameter.opts}
        assert not names & {"password", "secret", "jwt-secret", "key", "api-key", "token"}, (
            f"{name} {parameter.opts}"
        )


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("a key"), 78), (StartError("taken"), 1), (ApiError("conflict", "refused"), 1)],
)
def test_our_errors_end_with_their_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr(commands, "cli", failing)
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == code
    assert capsys.readouterr().err.startswith("inferno: ")


def test_module_and_command_are_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "inferno.cli", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("inferno, version ")
