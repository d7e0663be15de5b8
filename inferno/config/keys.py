"""The schema as a table of keys: what a value of each may be, in words and as a check.

Reads inferno.config.schema through msgspec's own introspection; parses and checks single values. Knows nothing of
files, variables or the rules between keys.
"""

from __future__ import annotations

import ipaddress
import math
import re
from typing import Any

import msgspec
from msgspec import Struct, inspect

from .schema import SECTIONS, ModelEntry, _Section

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_TRUE = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}
_HOST = re.compile(
    r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*(:[0-9]{1,5})?"
)
_ORIGIN = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
MAX_STRING = 4096  # characters of one string value
MAX_ITEMS = 1000  # items of one list
MAX_PREFIXES = 16
MAX_PREFIX = 32_768  # characters; all prefixes together fit the first message to an engine


class Key(Struct, frozen=True):
    """One key of the schema."""

    section: str
    name: str
    kind: str  # bool, int, float, str, choice, list
    default: Any
    description: str
    is_required: bool
    is_reloadable: bool
    is_path: bool
    is_url: bool
    derived: str
    example: Any
    item: str
    lowest: float | None
    highest: float | None
    pattern: str | None
    choices: tuple[str, ...]
    expectation: str

    @property
    def full_name(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def variable(self) -> str:
        return f"INFERNO_{self.section.upper()}_{self.name.upper()}"

    @property
    def expected(self) -> str:
        """Say in words what a value may be."""
        if self.expectation:
            return self.expectation
        if self.kind == "bool":
            return "true or false"
        if self.kind == "choice":
            return "one of " + ", ".join(f'"{choice}"' for choice in self.choices)
        if self.kind in ("int", "float"):
            noun = "a whole number" if self.kind == "int" else "a number"
            return f"{noun} from {self.lowest:g} to {self.highest:.10g}"
        if self.kind == "list":
            return f"a list of {_ITEM_NAMES[self.item]}"
        return "a file path" if self.is_path else "a text"

    def parse(self, text: str) -> Any:
        """Return the value that a variable's text stands for. Raises ValueError."""
        if self.kind == "list":
            return self.check([item.strip() for item in text.split(",") if item.strip()])
        if self.kind == "bool":
            if text.strip().lower() not in _TRUE:
                raise ValueError
            return _TRUE[text.strip().lower()]
        if self.kind == "int":
            if _INTEGER.fullmatch(text.strip()) is None:
                raise ValueError
            return self.check(int(text))
        if self.kind == "float":
            return self.check(float(text))
        return self.check(text)

    def check(self, value: Any) -> Any:
        """Return `value` with its exact type. Raises ValueError when it is not one that this key may have."""
        if self.kind == "bool":
            if not isinstance(value, bool):
                raise ValueError
            return value
        if self.kind in ("int", "float"):
            return self._number(value)
        if self.kind == "list":
            if not isinstance(value, list) or len(value) > (MAX_PREFIXES if self.item == "prefix" else MAX_ITEMS):
                raise ValueError
            return [_check_item(self.item, item) for item in value]
        if (
            not isinstance(value, str)
            or not value.strip()
            or len(value) > MAX_STRING
            or not value.isprintable()
        ):
            raise ValueError
        if self.choices and value not in self.choices:
            raise ValueError
        if self.pattern is not None and re.search(self.pattern, value) is None:
            raise ValueError
        return value

    def _number(self, value: Any) -> int | float:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole and not (self.kind == "float" and isinstance(value, float) and math.isfinite(value)):
            raise ValueError
        if (self.lowest is not None and value < self.lowest) or (
            self.highest is not None and value > self.highest
        ):
            raise ValueError
        return int(value) if self.kind == "int" else float(value)


_ITEM_NAMES = {
    "origin": "origins such as https://app.example.com (no path, no *)",
    "host": "host names",
    "network": "IP addresses or networks such as 10.0.0.0/8",
    "slug": "reason names",
    "prefix": f"at most {MAX_PREFIXES} texts of 1 to {MAX_PREFIX} characters",
}


def _check_item(kind: str, item: Any) -> str:
    if not isinstance(item, str) or len(item) > (MAX_PREFIX if kind == "prefix" else 512):
        raise ValueError
    if kind == "prefix":
        if not item.strip() or "\0" in item:
            raise ValueError
        return item
    if kind == "network":
        ipaddress.ip_network(item, strict=False)  # ValueError when it is none
    elif kind == "host":
        if _HOST.fullmatch(item) is None:
            ipaddress.ip_address(item.strip("[]"))
    elif (_ORIGIN if kind == "origin" else _SLUG).fullmatch(item) is None:
        raise ValueError
    return item


def _key(section: str, found: inspect.Field) -> Key:
    outer = found.type
    if not isinstance(outer, inspect.Metadata):
        raise TypeError(f"{section}.{found.name} has no documentation")
    extra = outer.extra or {}
    inner: Any = outer.type
    if isinstance(inner, inspect.UnionType):
        inner = next(part for part in inner.types if not isinstance(part, inspect.NoneType))
    kinds: dict[type, str] = {
        inspect.BoolType: "bool",
        inspect.IntType: "int",
        inspect.FloatType: "float",
        inspect.StrType: "str",
        inspect.LiteralType: "choice",
        inspect.ListType: "list",
    }
    default = found.default
    if default is msgspec.NODEFAULT and found.default_factory is not msgspec.NODEFAULT:
        default = found.default_factory()
    return Key(
        section=section,
        name=found.name,
        kind=kinds[type(inner)],
        default=None if default in (msgspec.NODEFAULT, "") else default,
        description=(outer.extra_json_schema or {})["description"],
        is_required=found.required,
        is_reloadable=extra["reload"],
        is_path=extra["path"],
        is_url=extra["url"],
        derived=extra["derived"],
        example=extra["example"],
        item=extra["item"],
        lowest=extra["lowest"],
        highest=extra["highest"],
        pattern=extra["pattern"],
        choices=tuple(getattr(inner, "values", ())),
        expectation=extra["expected"],
    )


def _table(section: str, kind: type[_Section]) -> dict[str, Key]:
    info = inspect.type_info(kind)
    if not isinstance(info, inspect.StructType):
        raise TypeError(section)
    return {found.name: _key(section, found) for found in info.fields if found.name != "entries"}


SECTION_KEYS: dict[str, dict[str, Key]] = {name: _table(name, kind) for name, kind in SECTIONS.items()}
MODEL_KEYS: dict[str, Key] = _table("models.<name>", ModelEntry)
KEYS: dict[str, Key] = {key.full_name: key for table in SECTION_KEYS.values() for key in table.values()}
VARIABLES: dict[str, Key] = {key.variable: key for key in KEYS.values()}
