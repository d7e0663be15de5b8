"""The Jinja environment that chat templates run in, and the static walk over a template.

Owns what a template may use: llama.cpp's and Hugging Face's common ground (trimmed blocks, loop controls, tojson without
HTML escapes, raise_exception, strftime_now, generation tags) in an immutable sandbox. Knows nothing of limits: time and
memory are bounded by the process around it. Imported only by the template child.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .template_wire import Failed

MAX_DETAIL = 300
_LOADING = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
_APPLYING = {"map", "select", "reject", "selectattr", "rejectattr"}


class TemplateRaised(jinja2.TemplateError):
    """The template itself refused the conversation with raise_exception."""


class GenerationTag(Extension):
    """`{% generation %} … {% endgeneration %}` marks the assistant's text for training; here it is only a group."""

    tags = {"generation"}  # noqa: RUF012 - the attribute's type is Jinja's

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates expect it: no HTML escapes, letters as they are."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def raise_exception(message: Any) -> NoReturn:
    raise TemplateRaised(str(message))


def strftime_now(format: str) -> str:
    return time.strftime(str(format))


@jinja2.pass_context
def _keep(context: Context, value: Any) -> Any:
    # A finalizer that asks for the context keeps the compiler from working out constants while it compiles.
    return value


class Sandbox(ImmutableSandboxedEnvironment):
    """Refuses a reach for an object's internals at once, where Jinja gives an undefined value that prints as nothing."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        if str(attribute).startswith("_"):
            raise SecurityError(f"access to attribute {str(attribute)[:40]!r} of a {type(obj).__name__}")
        return super().unsafe_undefined(obj, attribute)


def make_environment() -> Sandbox:
    environment = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,
        finalize=_keep,
        extensions=["jinja2.ext.loopcontrols", GenerationTag],
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def texts_of(node: nodes.Node) -> Iterator[str]:
    """Every name, attribute and string literal of one node; plain template text is none of them."""
    if isinstance(node, nodes.TemplateData):
        return
    for _, value in node.iter_fields():
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (item for item in value if isinstance(item, str))


def walk(tree: nodes.Template) -> Failed | None:
    """Look for what no chat template needs: other templates, and the internals of objects."""
    stack: list[nodes.Node] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, _LOADING):
            return Failed("statement", f"{type(node).__name__.lower()} in line {node.lineno}")
        if isinstance(node, nodes.Filter):
            if node.name == "attr":
                return Failed("attribute", f"the filter attr in line {node.lineno}")
            if node.name in _APPLYING and node.args and getattr(node.args[0], "value", None) == "attr":
                return Failed("attribute", f"the filter attr, applied by {node.name}, in line {node.lineno}")
        for text in texts_of(node):
            if "__" in text:
                return Failed("attribute", f"two underscores in {text[:40]!r} in line {node.lineno}")
        stack.extend(node.iter_child_nodes())
    return None


class Templates:
    """Compiles one template at a time and keeps it until another one comes."""

    def __init__(self) -> None:
        self._environment = make_environment()
        self._source: str | None = None
        self._template: jinja2.Template | None = None

    def check(self, source: str) -> Failed | None:
        """Parse, walk and compile; None if the template is sound so far."""
        return self._guarded(source, lambda: walk(self._environment.parse(source)))

    def _guarded(self, source: str, before: Callable[[], Failed | None]) -> Failed | None:
        """Do `before` and, if it finds nothing, compile; whatever goes wrong in either is the template's fault."""
        try:
            fault = before()
            if fault is None:
                self._compile(source)
        except jinja2.TemplateSyntaxError as error:
            return Failed("syntax", f"{str(error.message)[:MAX_DETAIL]} in line {error.lineno}")
        except (RecursionError, SyntaxError):
            # Jinja's compiler recurses per level; Python's refuses more than twenty nested blocks.
            return Failed("complex", "the template is nested too deeply")
        except MemoryError:
            return Failed("memory", "the template takes too much memory to compile")
        return fault

    def _compile(self, source: str) -> jinja2.Template:
        if self._template is None or self._source != source:
            self._template = self._environment.from_string(source)
            self._source = source
        return self._template

    def render(self, source: str, variables: dict[str, Any], max_output_bytes: int) -> str | Failed:
        """The rendered text, or why there is none. Does not walk: that was the verifier's part, with its waivers."""
        if self._source != source:
            fault = self._guarded(source, lambda: None)
            if fault is not None:
                return fault
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._compile(source).generate(variables):
                # counted in code points first: a piece has at least that many bytes
                size += len(piece)
                pieces.append(piece)
                if size > max_output_bytes:
                    return Failed("output", f"more than {max_output_bytes} bytes in {len(pieces)} pieces")
            text = "".join(pieces)
            if len(text.encode("utf-8", "surrogatepass")) > max_output_bytes:
                return Failed("output", f"more than {max_output_bytes} bytes in {len(pieces)} pieces")
            return text
        except TemplateRaised as error:
            return Failed("raised", str(error)[:MAX_DETAIL])
        except SecurityError as error:
            # Some real templates append to lists, which an immutable sandbox refuses: their failure, no attack.
            kind = "attribute" if "attribute '_" in str(error) else "error"
            return Failed(kind, str(error)[:MAX_DETAIL])
        except (RecursionError, OverflowError) as error:
            return Failed("loop", f"{type(error).__name__}: {str(error)[:MAX_DETAIL]}")
        except MemoryError:
            return Failed("memory", "the template takes too much memory")
        except Exception as error:
            # a template is a program of strangers: whatever it raises is its failure, not ours
            return Failed("error", f"{type(error).__name__}: {str(error)[:MAX_DETAIL]}")
