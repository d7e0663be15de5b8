"""The user's guide cut into statements: a line of prose, a list's entry, a line or comment of a block, each once."""

import re

_MARK = re.compile(r"^\s*(?:- \[ \] |- |\d+\. )?")


def statements(text):
    """Return the statements in their order, without headings, fences, marks of lists and line ends of commands."""
    found = []
    in_block = False
    for line in text.splitlines():
        if line.startswith("```"):
            in_block = not in_block
            continue
        if not in_block and line.startswith("#"):
            continue
        plain = _MARK.sub("", line) if not in_block else line.strip().removeprefix("#")
        plain = plain.strip().removesuffix("\\").strip()
        if plain and plain not in found:
            found.append(plain)
    return found
