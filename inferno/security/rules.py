"""The scanner's rules as data: reads the TOML files, checks them, compiles them into one native scanner.

Shipped rules stand in inferno/security/rules/*.toml; an operator adds rules.toml, of the same form, to the data
directory. A later file may repeat an id to change its score and actions. Owns no decision: which action follows is
inferno.security.screening's.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from inferno_native.scanner import Scanner
from inferno_native.textclean import fold

from inferno.datadir import DataDir
from inferno.errors import ConfigError
from inferno.security.patterns import PatternError, compile_patterns

ACTIONS = ("off", "report", "strip", "block")
CATEGORIES = (
    "path-traversal",
    "sql-injection",
    "xss",
    "command-injection",
    "template-injection",
    "prompt-injection",
    "special-token",
    "unicode-smuggling",
    "control-chars",
    "ssrf-url",
    "nul-byte",
    "log-injection",
)
DETECTORS = ("control", "invisible", "disguise")
DEFAULT_WITHIN = 64
MAX_FILE_BYTES = 1 << 20
MAX_WITHIN = 1024
_FIELDS = {
    "id",
    "category",
    "pattern",
    "sequence",
    "within",
    "score",
    "content",
    "identifier",
    "hidden_only",
    "detector",
}


@dataclass(frozen=True)
class Rule:
    """One rule: what it finds, what that means, and the strongest action that may follow in each place."""

    id: str
    category: str
    score: float
    stages: tuple[str, ...]
    within: int
    content: str
    identifier: str
    hidden_only: bool = False
    detector: str = ""


@dataclass(frozen=True)
class RuleSet:
    """All rules with the scanner that finds those that have patterns; `scanned[i]` is the scanner's rule number i."""

    rules: tuple[Rule, ...]
    scanned: tuple[Rule, ...]
    detectors: Mapping[str, Rule]
    scanner: Scanner


def _expand(pattern: str, sets: Mapping[str, Sequence[str]], where: str) -> str:
    """Puts the named lists of words in place of @name."""

    def words(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in sets:
            raise ConfigError(f"{where}: no set is called {name!r}")
        return "(" + "|".join(sets[name]) + ")"

    return re.sub(r"(?<![\\\w.@])@([a-z_]+)", words, pattern)


def _spellings(pattern: str) -> list[str]:
    """A pattern in the forms in which text is scanned: accents removed, and look-alike letters mapped too."""
    if pattern.isascii():
        return [pattern]
    light = "".join(c if c.isascii() else fold(c, False).decode() for c in pattern)
    full = "".join(c if c.isascii() else fold(c, True).decode() for c in pattern)
    return [light] if light == full else [light, full]


def _rule(entry: Mapping[str, object], sets: Mapping[str, Sequence[str]], where: str) -> Rule:
    name = entry.get("id")
    where = f"{where}, rule {name!r}"
    unknown = entry.keys() - _FIELDS
    if unknown:
        raise ConfigError(
            f"{where}: unknown field {sorted(unknown)[0]!r}; known: {', '.join(sorted(_FIELDS))}"
        )
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9-]{1,64}", name):
        raise ConfigError(f"{where}: an id has 1 to 64 of a-z, 0-9 and -")
    category = entry.get("category")
    if not isinstance(category, str) or not re.fullmatch(r"[a-z0-9-]{1,32}", category):
        raise ConfigError(f"{where}: a category has 1 to 32 of a-z, 0-9 and -")
    score = entry.get("score", 0.5)
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 < score <= 1:
        raise ConfigError(f"{where}: score is above 0 and at most 1, got {score!r}")
    detector = entry.get("detector", "")
    ways = [entry.get("pattern"), entry.get("sequence"), detector or None]
    if sum(way is not None for way in ways) != 1:
        raise ConfigError(f"{where}: one of pattern, sequence and detector is given")
    if detector and detector not in DETECTORS:
        raise ConfigError(f"{where}: detector is one of {', '.join(DETECTORS)}, got {detector!r}")
    stages = [ways[0]] if ways[0] is not None else ways[1] or []
    if not isinstance(stages, list) or not all(isinstance(s, str) for s in stages) or len(stages) > 4:
        raise ConfigError(f"{where}: a pattern is text, a sequence a list of up to four")
    within = entry.get("within", DEFAULT_WITHIN)
    if isinstance(within, bool) or not isinstance(within, int) or not 1 <= within <= MAX_WITHIN:
        raise ConfigError(f"{where}: within is 1 to {MAX_WITHIN}, got {within!r}")
    actions = {}
    for place in ("content", "identifier"):
        action = entry.get(place, "block")
        if action not in ACTIONS:
            raise ConfigError(f"{where}: {place} is one of {', '.join(ACTIONS)}, got {action!r}")
        if action == "strip" and not detector:
            raise ConfigError(
                f"{where}: strip is for detectors of characters; a pattern is reported or blocked"
            )
        actions[place] = str(action)
    return Rule(
        id=name,
        category=category,
        score=float(score),
        stages=tuple(_expand(str(s), sets, where) for s in stages),
        within=within,
        content=actions["content"],
        identifier=actions["identifier"],
        hidden_only=entry.get("hidden_only") is True,
        detector=str(detector),
    )


def read_rules(text: str, where: str) -> list[Rule]:
    """The rules of one file."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: {error}") from None
    unknown = document.keys() - {"sets", "rule"}
    if unknown:
        raise ConfigError(f"{where}: unknown table {sorted(unknown)[0]!r}; a rule file has sets and rule")
    sets = document.get("sets", {})
    return [_rule(entry, sets, where) for entry in document.get("rule", [])]


def shipped_rules() -> list[Rule]:
    """The rules that come with Inferno, by file name."""
    rules: list[Rule] = []
    folder = files("inferno.security").joinpath("rules")
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        if file.name.endswith(".toml"):
            rules += read_rules(file.read_text(encoding="utf-8"), file.name)
    return rules


def stages_of(rules: Iterable[Rule]) -> tuple[list[str], list[list[tuple[list[int], int]]]]:
    """Every pattern of some rules once, and each rule as stages: (numbers of its patterns, within)."""
    patterns: dict[str, int] = {}
    sequences = []
    for rule in rules:
        sequence = []
        for stage in rule.stages:
            numbers = [patterns.setdefault(spelling, len(patterns)) for spelling in _spellings(stage)]
            sequence.append((numbers, rule.within))
        sequences.append(sequence)
    return list(patterns), sequences


def compile_rules(rules: Iterable[Rule]) -> RuleSet:
    """One scanner for all rules; of two with the same id the later one stands."""
    by_id: dict[str, Rule] = {}
    for rule in rules:
        by_id[rule.id] = rule
    kept = tuple(by_id.values())
    scanned = tuple(rule for rule in kept if rule.stages and not (rule.content == rule.identifier == "off"))
    patterns, sequences = stages_of(scanned)
    try:
        tables = compile_patterns(patterns)
    except PatternError as error:
        owner = next(
            (r.id for r in scanned for s in r.stages if any(p in str(error) for p in _spellings(s))), "?"
        )
        raise PatternError(f"rule {owner!r}: {error}") from None
    detectors = {rule.detector: rule for rule in kept if rule.detector}
    return RuleSet(kept, scanned, detectors, Scanner(tables, sequences))


def operator_rules(data_dir: str | Path) -> tuple[Path, ...]:
    """The operator's own rule file, `rules.toml` in the data directory, where there is one."""
    path = DataDir(data_dir).rules_file
    return (path,) if os.path.lexists(path) else ()


def load_rules(extra: tuple[Path, ...] = ()) -> RuleSet:
    """The shipped rules and the operator's files, compiled once per process and content. Raises ConfigError."""
    return _compiled(tuple((str(path), _read(path)) for path in extra))


@lru_cache(maxsize=4)
def _compiled(extra: tuple[tuple[str, str], ...]) -> RuleSet:
    rules = shipped_rules()
    for where, text in extra:
        rules += read_rules(text, where)
    return compile_rules(rules)


def _read(path: Path) -> str:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"rule file {path}: not a regular file")
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"rule file {path}: at most {MAX_FILE_BYTES} bytes are read")
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"rule file {path}: cannot be read ({type(error).__name__})") from None
