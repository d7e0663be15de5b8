"""Every numbered requirement of identity and limits has a test whose name carries its number: test_jwt_6_…"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

NUM_REQUIREMENTS = {"cfg": 4, "jwt": 12, "pwd": 7, "key": 8, "aut": 4, "aud": 7, "lim": 11}
TESTS = Path(__file__).parent
_NAME = re.compile(r"^\s*(?:async )?def (test_\w+)", re.MULTILINE)


@pytest.fixture(scope="module")
def names() -> list[str]:
    return [name for path in TESTS.rglob("test_*.py") for name in _NAME.findall(path.read_text())]


@pytest.mark.parametrize(
    "requirement", [f"{area}_{number}" for area, last in NUM_REQUIREMENTS.items() for number in range(1, last + 1)]
)
def test_a_test_names_it(names: list[str], requirement: str) -> None:
    pattern = re.compile(rf"_{requirement}(?:_|$)")
    assert [name for name in names if pattern.search(name)]
