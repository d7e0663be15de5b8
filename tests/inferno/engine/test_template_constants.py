"""The constants of a template, found without parsing it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from inferno.engine.template_constants import constants

CASES = {
    "": set(),
    "a{{ b }}c": {"a", "c"},
    "{{ '<|x|>' + \"<|y|>\" }}": {"<|x|>", "<|y|>"},
    "{%- if m == 'us\\'er' -%}t{% endif %}": {"us'er", "t"},
    "{# 'no' #}yes": {"yes"},
    "{{ '}}' }}z": {"}}", "z"},
    "{{ '\\u003c\\n' }}": {"<\n"},
    "{{ '｜\\n' }}": {"｜\n"},
    "{{ 'open": set(),
    "{% x": set(),
    "{# x": set(),
    "{{ 'bad\\u12' }}": {"bad\\u12"},
    "{{ 'odd\\{' }}": {"odd\\{"},
}


def test_cases() -> None:
    for source, expected in CASES.items():
        assert constants(source) == expected, source


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("{}%#'\"\\ab \n"), max_size=60))
def test_any_source_gives_parts_of_it_or_nothing(source: str) -> None:
    for constant in constants(source):
        assert constant
        assert constant in source or "\\" in source
