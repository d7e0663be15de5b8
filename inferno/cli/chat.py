"""`inferno chat` and `inferno run`: a conversation in the terminal, one prompt from a script.

Owns what is read and printed, and Ctrl-C: it stops the answer, and twice the program. Where answers come from (a
running server, or an engine of our own) is the matter of inferno.cli.talkers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from .options import config_option

if TYPE_CHECKING:
    from .talkers import Talker

_WHERE = """
A running server answers (of this configuration, or --url) with the key of INFERNO_API_KEY, else of <data>/cli.key.
Where none runs, the model is loaded for this command alone.
"""


def _options(function: Any) -> Any:
    for option in (
        click.option("--system", help="Instructions that come before the conversation."),
        click.option("--max-tokens", type=click.IntRange(1, 1 << 30), help="Longest answer, in tokens."),
        click.option("--temperature", type=click.FloatRange(0, 2), help="0: always the likeliest token."),
        click.option(
            "--seed", type=click.IntRange(0, (1 << 63) - 1), help="The same seed gives the same answer."
        ),
        click.option("--url", help="Address of a server, such as http://127.0.0.1:8080."),
    ):
        function = option(function)
    return config_option(function)


@click.command(
    epilog="""\b
Examples:
  inferno chat                               the default model of the running server
  inferno chat smollm2 --system "Be brief."
  inferno chat ./tiny.gguf                   a file, without a server

/clear forgets the conversation, /exit or Ctrl-D ends.
"""
    + _WHERE
)
@click.argument("model", required=False)
@_options
def chat(model: str | None, config: str | None, url: str | None, system: str | None, **options: Any) -> None:
    """Talk with MODEL in the terminal. Ctrl-C stops the answer, and twice the program."""
    from .talkers import open_talker

    first = [{"role": "system", "content": system}] if system else []
    messages = list(first)
    with open_talker(config, url, model) as talker:
        click.echo(f"{talker.description}. /exit or Ctrl-D ends.", err=True)
        for line in _lines():
            if line in ("/exit", "/quit", "/bye"):
                break
            if line == "/clear":
                messages = list(first)
                continue
            messages.append({"role": "user", "content": line})
            answer, _ = _print_answer(talker, messages, options)
            if answer:
                messages.append({"role": "assistant", "content": answer})
            else:
                messages.pop()


@click.command(
    epilog="""\b
Examples:
  inferno run smollm2 "Name three rivers."
  echo "Summarize: ..." | inferno run smollm2 -
  inferno run ./tiny.gguf "Hello" --max-tokens 32 --temperature 0
"""
    + _WHERE
)
@click.argument("model")
@click.argument("prompt")
@_options
def run(
    model: str, prompt: str, config: str | None, url: str | None, system: str | None, **options: Any
) -> None:
    """Have MODEL answer PROMPT ("-": standard input) and end."""
    from .talkers import open_talker

    text = sys.stdin.read() if prompt == "-" else prompt
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    with open_talker(config, url, model) as talker:
        _, is_whole = _print_answer(talker, messages, options)
    if not is_whole:
        sys.exit(130)


def _lines() -> Iterator[str]:
    """Yield what the user types until the end of input or a second Ctrl-C in a row."""
    was_interrupted = False
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            if was_interrupted:
                click.echo()
                return
            was_interrupted = True
            click.echo("\n(Ctrl-C again ends)", err=True)
            continue
        was_interrupted = False
        if line:
            yield line


def _print_answer(
    talker: Talker, messages: list[dict[str, str]], options: dict[str, Any]
) -> tuple[str, bool]:
    """Print an answer as it comes; return it, and whether it is whole. Raises InfernoError."""
    parts: list[str] = []
    is_whole = True
    deltas = talker.stream(messages, {name: value for name, value in options.items() if value is not None})
    try:
        for delta in deltas:
            parts.append(delta)
            sys.stdout.write(printable(delta))
            sys.stdout.flush()
    except KeyboardInterrupt:
        is_whole = False
    finally:
        deltas.close()
    click.echo()
    return "".join(parts), is_whole


def printable(text: str) -> str:
    """Return `text` without what a terminal would obey: a model's words steer nobody's screen."""
    return "".join(
        character
        for character in text
        if character in "\n\t" or not (ord(character) < 32 or 127 <= ord(character) < 160)
    )
