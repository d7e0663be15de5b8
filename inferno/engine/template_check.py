"""The verifier's check of a model's chat templates: a static walk, then a trial run with sample conversations.

Owns the samples and which failure is which fault. Templates are judged in a template child of their own, never in this
process. Runs in the engine before a load, and in commands.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import msgspec
from inferno_native.gguf_report import REASONS, GgufError

from .template_wire import Check, Limits, Render, Sandbox
from .templates import TemplateError, TemplateProcess, TemplateUnavailable

TRIAL_LIMITS = Limits(cpu_seconds=2, wall_seconds=10.0, memory_bytes=384 << 20, max_output_bytes=1 << 20)
MAX_TEMPLATE_BYTES = 256 * 1024

_FAULTS = {
    "syntax": ("template-syntax", False),
    "complex": ("template-too-complex", True),
    "statement": ("template-forbidden-statement", True),
    "attribute": ("template-forbidden-attribute", True),
    "loop": ("template-unbounded-loop", True),
    "memory": ("template-memory-bomb", True),
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
_TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "Good morning. What is a chat template?"},
    {"role": "assistant", "content": "It turns a conversation into one text."},
    {"role": "user", "content": "Thank you. And the weather?"},
]
_CALL: list[dict[str, Any]] = [
    {"role": "user", "content": "What is the weather in Oslo?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "call00001",
                "type": "function",
                "function": {"name": "weather", "arguments": {"place": "Oslo"}},
            },
        ],
    },
    {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": "Rain, 7 degrees."},
]
_SAMPLES: tuple[tuple[list[dict[str, Any]], list[dict[str, Any]] | None], ...] = (
    (_TALK, None),
    (_TALK, [_TOOL]),
    (_CALL, [_TOOL]),
    (_TALK[1:2], None),
)


def check_template(
    process: TemplateProcess,
    template: str,
    special_texts: Mapping[str, str] | None = None,
    allow: frozenset[str] = frozenset(),
) -> list[str]:
    """Walk, compile and try one template in `process` (started with TRIAL_LIMITS).

    Raises GgufError for a fault that is not waived; a waived one does not end the check. Returns the waived reasons.
    """
    waived: list[str] = []

    def meet(fault: GgufError) -> None:
        if not (fault.policy and fault.reason in allow):
            raise fault
        waived.append(fault.reason)

    if len(template.encode("utf-8", "surrogatepass")) > MAX_TEMPLATE_BYTES:
        meet(GgufError("template-too-long", None, policy=True))
    try:
        process.run(Check(template))
    except TemplateUnavailable:
        raise
    except TemplateError as error:
        # A compiler that dies or does not come to an end was given too much.
        kind = error.kind if error.kind in ("syntax", "statement", "attribute", "memory") else "complex"
        meet(_fault(kind, error.message))
    tokens = {f"{name}_token": text for name, text in (special_texts or {}).items()}
    for messages, tools in _SAMPLES:
        variables = {
            "bos_token": "<s>",
            "eos_token": "</s>",
            **tokens,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": True,
        }
        try:
            process.run(Render(template, variables))
        except TemplateUnavailable:
            raise
        except TemplateError as error:
            kind = error.kind
            if kind == "output":
                # many small pieces come from a loop, a few from one expression
                kind = "loop" if int(error.message.split()[-2]) > 1000 else "memory"
            elif kind == "crashed":
                kind = "memory"
            if kind in _FAULTS:
                meet(_fault(kind, error.message))
                break
            # raise_exception and undefined values are no faults: the sample need not suit the template
    return waived


def _fault(kind: str, detail: str) -> GgufError:
    reason, policy = _FAULTS[kind]
    return GgufError(reason, None, f"{REASONS[reason]}: {detail}", policy=policy)


def check_templates(
    templates: Mapping[str, str],
    special_texts: Mapping[str, str] | None = None,
    allow: frozenset[str] = frozenset(),
    *,
    sandbox: Sandbox = "auto",
    executable: str = sys.executable,
) -> list[str]:
    """Check every template of a model in one child; return the waived reasons that were met. Raises GgufError."""
    if not templates:
        return []
    waived: list[str] = []
    limits = msgspec.structs.replace(TRIAL_LIMITS, sandbox=sandbox)
    try:
        with TemplateProcess(limits=limits, executable=executable) as process:
            for name, template in templates.items():
                try:
                    waived += check_template(process, template, special_texts, allow)
                except GgufError as error:
                    error.detail = f"{error.detail} (template {name!r})"
                    raise
    except TemplateUnavailable as error:
        raise GgufError("template-unchecked", None, f"{REASONS['template-unchecked']}: {error.message}") from None
    return sorted(set(waived))
