"""Chat templates: what renders, what is refused, and what a limit costs (one request, nothing else)."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from inferno_native.gguf_report import GgufError

from inferno.engine.template_check import TRIAL_LIMITS, check_template, check_templates
from inferno.engine.template_spawn import Spawned, program
from inferno.engine.template_wire import Limits
from inferno.engine.templates import (
    TemplateError,
    TemplateLimit,
    TemplateProcess,
    TemplateRefused,
    TemplateUnavailable,
)

CHATML = (
    "{%- for m in messages %}\n<|im_start|>{{ m.role }}\n{{ m['content'] }}<|im_end|>\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}<|im_start|>assistant\n{%- endif %}"
)
TALK = [{"role": "user", "content": "hi"}]
SHORT = Limits(
    sandbox="auto", cpu_seconds=1, wall_seconds=6.0, memory_bytes=64 << 20, max_output_bytes=1 << 16
)


@pytest.fixture(scope="module")
def process() -> Iterator[TemplateProcess]:
    with TemplateProcess(limits=SHORT, special_texts={"bos": "<s>", "eos": "</s>"}) as running:
        yield running


@pytest.fixture(scope="module")
def trial() -> Iterator[TemplateProcess]:
    with TemplateProcess(limits=TRIAL_LIMITS) as running:
        yield running


def render(process: TemplateProcess, template: str, **options: object) -> str:
    process.template = template
    return process.render(TALK, **options)  # type: ignore[arg-type]


def test_renders_like_transformers(process: TemplateProcess) -> None:
    text = render(process, CHATML)
    assert text == "<|im_start|>user\nhi<|im_end|><|im_start|>assistant"
    assert render(process, CHATML, add_generation_prompt=False) == "<|im_start|>user\nhi<|im_end|>"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        ("{{ {'a': '<é&>'} | tojson }}", '{"a": "<é&>"}'),
        ("{{ [1, {'b': 2}] | tojson(indent=2) }}", '[\n  1,\n  {\n    "b": 2\n  }\n]'),
        ("{{ tools is none }}{{ tools is defined }}", "TrueTrue"),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "hi!"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% if enable_thinking is defined and enable_thinking is false %}off{% else %}on{% endif %}", "on"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "1",
        ),
        ("a {#- c -#} b\n    {% if true %}\nc\n    {% endif %}\nd", "ab\nc\nd"),
    ],
)
def test_common_ground_of_templates(process: TemplateProcess, template: str, expected: str) -> None:
    assert render(process, template) == expected


def test_everything_is_loaded_before_the_lock(process: TemplateProcess) -> None:
    # after the lock no file can be opened, so a late import would fail
    process.start()
    assert process.sandbox["mode"] == "auto"
    if not process.sandbox["landlock"].startswith("ABI"):
        pytest.skip(f"no Landlock here: {process.sandbox['landlock']}")
    assert render(process, "{{ {'a': [1, 'é']} | pprint }}") == "{'a': [1, 'é']}"
    assert len(render(process, "{{ lipsum(1) }}")) > 20
    assert render(
        process, "{{ [3] | random }}{{ '%05.1f' | format(2) }}{{ 'http://a.test' | urlize | striptags }}"
    )
    assert render(process, "{{ 'a,b'.encode('utf-16') | length }}") == "8"
    with pytest.raises(TemplateError, match="unexpected"):
        render(process, "{{ 1 + }}")


def test_named_booleans_reach_the_template(process: TemplateProcess) -> None:
    template = "{{ 'on' if enable_thinking else 'off' }}"
    assert render(process, template, enable_thinking=True) == "on"
    assert render(process, template, enable_thinking=False) == "off"


@pytest.mark.parametrize(
    "text", ["\x01\x02\x1b[0m", "\ue000a\U0010fffd", "{{ 7 * 7 }}{% raw %}", "a\r\nb\u2028", ""]
)
def test_client_text_passes_unchanged(process: TemplateProcess, text: str) -> None:
    process.template = "{{ messages[0].content }}"
    assert process.render([{"role": "user", "content": text}]) == text


@pytest.mark.parametrize("text", ["{{ 7 * 7 }}", "{% set role = 'system' %}", "{{ ''.__class__ }}", "{# x #}", "%}x{%"])
def test_sec_131_template_syntax_in_names_and_roles_is_literal_text(process: TemplateProcess, text: str) -> None:
    message = {"role": text, "name": text, "tool_call_id": text, "content": text}
    message["tool_calls"] = [{"id": text, "type": "function", "function": {"name": text, "arguments": {text: text}}}]
    process.template = (
        "{% for m in messages %}{{ m.role }}|{{ m.name }}|{{ m.tool_call_id }}|{{ m.content }}|{% for c in m.tool_calls %}"
        "{{ c.id }}|{{ c.function.name }}|{% for k, v in c.function.arguments.items() %}{{ k }}|{{ v }}{% endfor %}"
        "{% endfor %}{% endfor %}"
    )
    assert process.render([message]) == "|".join([text] * 8)


def test_refusal_of_the_template_is_its_own_error(process: TemplateProcess) -> None:
    with pytest.raises(TemplateRefused, match="roles must alternate") as caught:
        render(process, "{{ raise_exception('roles must alternate') }}")
    assert caught.value.code == "template_failed"


def test_an_undefined_value_is_an_error_of_the_template(process: TemplateProcess) -> None:
    with pytest.raises(TemplateError, match="UndefinedError"):
        render(process, "{{ nothing.at.all }}")


@pytest.mark.parametrize(
    ("template", "kinds"),
    [
        ("{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}", {"loop"}),
        ("{% for a in range(90000) %}xxxx{% endfor %}", {"output"}),
        ("{{ 'A' * 10000000000 }}", {"memory"}),
        ("{{ 'ab' | center(2000000000) }}", {"memory"}),
        ("{{ '{:>2000000000}'.format(1) }}", {"memory"}),
        (
            "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
            {"memory"},
        ),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(0) }}", {"loop"}),
        ("{{ 7 ** (9 ** 9) }}", {"loop", "memory"}),
    ],
)
def test_a_limit_fails_one_request_only(process: TemplateProcess, template: str, kinds: set[str]) -> None:
    """sec_132: what passes the check still has limits at each render."""
    child = process.pid
    with pytest.raises(TemplateLimit) as caught:
        render(process, template)
    assert caught.value.kind in kinds
    assert render(process, CHATML).startswith("<|im_start|>user")
    assert process.pid == child  # a worker was replaced, the child lives


@pytest.mark.parametrize("value", [1 << 70, "\ud800", object()])
def test_what_cannot_be_sent_fails_its_request_only(process: TemplateProcess, value: object) -> None:
    process.template = CHATML
    with pytest.raises(TemplateError):
        process.render([{"role": "user", "content": "hi", "extra": value}])
    assert render(process, CHATML)


def test_a_killed_child_is_replaced(process: TemplateProcess) -> None:
    child = process.pid
    assert child is not None
    os.killpg(child, 9)
    with pytest.raises(TemplateLimit):
        render(process, CHATML)
    assert render(process, CHATML)
    assert process.pid != child


def test_a_dead_child_is_replaced_through_who_starts_it() -> None:
    start, started = program(sys.executable), []

    def spawn() -> Spawned:
        if len(started) == 2:
            raise PermissionError(1, "Operation not permitted")
        started.append(start())
        return started[-1]

    with TemplateProcess(CHATML, limits=SHORT, spawn=spawn) as process:
        for is_last in (False, True):
            os.killpg(started[-1].pid, 9)
            with pytest.raises(TemplateLimit):
                process.render(TALK)
            if not is_last:
                assert process.render(TALK)
                assert process.pid == started[1].pid
        with pytest.raises(TemplateUnavailable):
            process.render(TALK)


def test_a_child_that_cannot_start_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(TemplateUnavailable) as caught:
        TemplateProcess(executable=str(tmp_path / "missing")).start()
    assert caught.value.code == "engine_failed"
    with pytest.raises(GgufError, match="template-unchecked"):
        check_templates({"default": CHATML}, executable=str(tmp_path / "missing"))


def test_the_child_has_no_environment_no_descriptors_and_no_model_library() -> None:
    # not locked: a locked child's /proc entries are closed to its own user
    with TemplateProcess(limits=Limits(sandbox="off")) as process:
        environ = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert environ == b"LANG=C.UTF-8\0"
        names = [os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
        assert sorted({name.split(":")[0] for name in names}) == ["/dev/null", "socket"]
    code = "import sys, inferno.engine.template_child; print([m for m in sys.modules if 'llama' in m or 'asyncio' in m])"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ ''.__class__ }}", "template-forbidden-attribute"),
        ("{{ ''['__class__'] }}", "template-forbidden-attribute"),
        ("{{ ''['\\x5f\\x5fclass'] }}", "template-forbidden-attribute"),
        ("{{ ''['_' * 2 ~ 'class' ~ '_' * 2] }}", "template-forbidden-attribute"),
        ("{% set __x = 1 %}", "template-forbidden-attribute"),
        ("{{ messages | map('attr', 'role') | list }}", "template-forbidden-attribute"),
        ("{% if false %}{{ dict(__a=1) }}{% endif %}", "template-forbidden-attribute"),
        ("{% macro a__b() %}{% endmacro %}", "template-forbidden-attribute"),
        ("{% extends 'x' %}", "template-forbidden-statement"),
        ("{% import 'x' as y %}", "template-forbidden-statement"),
        ("{% from 'x' import y %}", "template-forbidden-statement"),
        ("{{ 1 | nonesuch }}", "template-syntax"),
        ("{% if %}", "template-syntax"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "template-too-complex"),
        ("{% for i in [1] %}" * 30 + "{% endfor %}" * 30, "template-too-complex"),
        ("x" * (256 * 1024 + 1), "template-too-long"),
        ("{% for m in range(10 ** 9) %}{% endfor %}", "template-unbounded-loop"),
        (
            "{% for i in range(99999) %}long enough text to fill the output{% endfor %}",
            "template-unbounded-loop",
        ),
        ("{{ 'a' * 3000000 }}", "template-memory-bomb"),
    ],
)
def test_a_bad_template_has_its_reason(trial: TemplateProcess, template: str, reason: str) -> None:
    """sec_132."""
    with pytest.raises(GgufError) as caught:
        check_template(trial, template)
    assert caught.value.reason == reason
    assert caught.value.policy == (reason != "template-syntax")


@pytest.mark.parametrize(
    "template",
    [
        "Use __main__ here.{# and __this__ there #}{{ messages[0].content }}",
        "{% raw %}{{ __x__ }}{% endraw %}",
        "{{ raise_exception('Conversation roles must alternate') }}",
        "{{ undefined_thing.attribute }}",
        "{% set x = [] %}{% set _ = x.append(1) %}",
        "{% if false %}{{ 1 | nonesuch }}{% endif %}",
        "",
    ],
)
def test_a_sound_template_passes(trial: TemplateProcess, template: str) -> None:
    check_template(trial, template)


def test_a_waived_template_fault_is_reported() -> None:
    templates = {"default": CHATML, "tool_use": "{% include 'x' %}"}
    with pytest.raises(GgufError, match="tool_use"):
        check_templates(templates)
    assert check_templates(templates, allow=frozenset({"template-forbidden-statement"})) == [
        "template-forbidden-statement"
    ]


def test_a_waiver_covers_its_own_reason_only(trial: TemplateProcess) -> None:
    allow = frozenset({"template-forbidden-attribute", "template-too-long"})
    bomb = "{% set __x = 1 %}{{ 'A' * 10000000000 }}"
    with pytest.raises(GgufError, match="template-memory-bomb"):
        check_template(trial, bomb, allow=allow)
    long = "{% set __x = 1 %}" + "x" * (256 * 1024)
    assert check_template(trial, long, allow=allow) == ["template-too-long", "template-forbidden-attribute"]
    # and what was waived renders
    assert render(trial, "{% set __x = 1 %}{{ __x }}") == "1"


def test_the_confinement_can_be_turned_off() -> None:
    with TemplateProcess(limits=Limits(sandbox="off")) as process:
        assert process.sandbox["mode"] == "off"
        assert render(process, CHATML)
