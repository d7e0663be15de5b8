"""Docs name what exists: error codes, the guide's checklist, files of the architecture page."""

import re

from inferno.errors import CODES
from tests.conftest import ROOT


def test_api_page_lists_every_error_code_and_only_real_ones():
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\w+) \| (.+) \|$", (ROOT / "docs/api.md").read_text(), re.M)
    assert {code: (int(status), kind, meaning) for code, status, kind, meaning in rows} == {
        code: tuple(entry) for code, entry in CODES.items()
    }


def test_architecture_page_has_a_line_for_every_module_and_only_real_ones():
    text = (ROOT / "docs/ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`((?:inferno|native/inferno_native)/[\w/]+\.(?:py|pyx|pxd|h|lua))`", text))
    missing = {name for name in named if not (ROOT / name).is_file()}
    assert not missing
    sources = {
        str(path.relative_to(ROOT))
        for folder, pattern in (("inferno", "*.py"), ("native/inferno_native", "*.pyx"))
        for path in (ROOT / folder).rglob(pattern)
        if path.stat().st_size and path.name not in {"__init__.py", "__main__.py"} and "migrations" not in path.parts
    }
    assert not sources - named, f"no line for: {sorted(sources - named)}"


def test_the_security_guide_keeps_the_user_s_checklist():
    text = (ROOT / "docs/security.md").read_text()
    assert text.count("- [ ]") == 9
