"""Plain-Python twin of inferno_native.sampler: every stage by sorting, in double precision."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

Row = dict[int, float]  # token → logit, of those still there


def softmax(row: Row, temperature: float = 1.0) -> dict[int, float]:
    best = max(row.values())
    weights = {token: math.exp((logit - best) / temperature) for token, logit in row.items()}
    total = sum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


def ordered(row: Row) -> list[int]:
    return sorted(row, key=lambda token: (-row[token], token))


def penalize(row: Row, history: Sequence[int], p: Mapping[str, Any]) -> None:
    last_n = p.get("repeat_last_n", 64)
    for token, count in Counter(history[-last_n:] if last_n else []).items():
        if token not in row:
            continue
        repeat = p.get("repeat_penalty", 1.0)
        row[token] = row[token] * repeat if row[token] <= 0 else row[token] / repeat
        row[token] -= count * p.get("frequency_penalty", 0.0) + p.get("presence_penalty", 0.0)


def dry(row: Row, history: Sequence[int], p: Mapping[str, Any]) -> None:
    """Every suffix against every place: quadratic, plain."""
    allowed, breakers = p.get("dry_allowed_length", 2), [tuple(b) for b in p.get("dry_breakers", ())]
    recent = list(history[-p.get("dry_penalty_last_n", 4096) :])[::-1]
    if len(recent) <= allowed:
        return
    limit = len(recent)
    for back, token in enumerate(recent):
        lengths = [
            len(b) - 1
            for b in breakers
            if b[0] == token and len(b) - 1 <= back and all(recent[back - 1 - i] == t for i, t in enumerate(b[1:]))
        ]
        if lengths:
            limit = back - max(lengths)
            break
    if limit < allowed:
        return
    longest: dict[int, int] = {}
    for place in range(1, len(recent)):
        length = 0
        while place + length < len(recent) and recent[length] == recent[place + length]:
            length += 1
        length = min(length, limit)
        if length >= allowed:
            longest[recent[place - 1]] = max(longest.get(recent[place - 1], 0), length)
    for token, length in longest.items():
        if (token,) not in breakers and token in row:
            row[token] -= p["dry_multiplier"] * p.get("dry_base", 1.75) ** (length - allowed)


def truncate(row: Row, p: Mapping[str, Any]) -> Row:
    if 0 < p.get("top_k", 0) < len(row):
        row = {token: row[token] for token in ordered(row)[: p["top_k"]]}
    if p.get("typical_p", 1.0) < 1:
        share = softmax(row)
        entropy = -sum(x * math.log(x) for x in share.values() if x > 0)
        near = sorted(row, key=lambda t: (abs(-math.log(share[t]) - entropy) if share[t] > 0 else math.inf, t))
        row = _until(row, near, share, lambda total: total > p["typical_p"])
    if p.get("top_p", 1.0) < 1:
        share = softmax(row)
        row = _until(row, ordered(row), share, lambda total: total >= p["top_p"])
    if p.get("min_p", 0.0) > 0:
        best = max(row.values())
        row = {t: x for t, x in row.items() if x >= best + math.log(p["min_p"]) or x == best}
    if p.get("xtc_probability", 0.0) >= 1 and p.get("xtc_threshold", 0.1) <= 0.5 and len(row) > 1:
        share = softmax(row)
        top = [t for t in ordered(row) if share[t] >= p.get("xtc_threshold", 0.1)]
        row = {t: x for t, x in row.items() if t not in top[:-1]}
    return row


def _until(row: Row, order: list[int], share: dict[int, float], enough: Any) -> Row:
    total, kept = 0.0, []
    for token in order:
        kept.append(token)
        total += share[token]
        if enough(total):
            break
    return {token: row[token] for token in kept}


def mirostat(row: Row, p: Mapping[str, Any], mu: float, n_vocab: int) -> Row:
    temperature = p.get("temperature", 1.0)
    share = softmax(row, temperature)
    order = ordered(row)
    if p["mirostat"] == 2:
        kept = [token for token in order if share[token] > 0 and -math.log2(share[token]) <= mu]
        return {token: row[token] for token in kept or order[:1]}
    top = order[: min(100, len(order))]
    steps = [math.log((i + 2) / (i + 1)) for i in range(len(top) - 1)]
    gaps = [(row[a] - row[b]) / temperature for a, b in pairwise(top)]
    squares = sum(step * step for step in steps)
    size = 1.0
    if squares:
        spread = sum(step * gap for step, gap in zip(steps, gaps, strict=True)) / squares
        surprise = spread - 1
        try:
            size = ((surprise * 2**mu) / (1 - n_vocab**-surprise)) ** (1 / spread)
        except (ZeroDivisionError, OverflowError):
            size = 1.0
    k = int(size) if isinstance(size, float) and math.isfinite(size) and size > 1 else 1
    return {token: row[token] for token in order[:k]}


def distribution(logits: Sequence[float], history: Sequence[int] = (), mu: float | None = None, **p: Any) -> dict[int, float]:
    """Return {token: probability} of one draw; XTC's chance counts as drawn when its probability is 1."""
    row = {token: float(logit) for token, logit in enumerate(logits)}
    for token, bias in p.get("logit_bias", {}).items():
        row[token] += -math.inf if bias <= -100 else bias
    if p.get("repeat_penalty", 1.0) != 1 or p.get("frequency_penalty", 0.0) or p.get("presence_penalty", 0.0):
        penalize(row, history, p)
    if p.get("dry_multiplier", 0.0) > 0:
        dry(row, history, p)
    row = {token: logit for token, logit in row.items() if logit > -math.inf}
    temperature = p.get("temperature", 1.0)
    if temperature <= 0:
        return {ordered(row)[0]: 1.0}
    if p.get("mirostat", 0):
        row = mirostat(row, p, 2 * p.get("mirostat_tau", 5.0) if mu is None else mu, len(logits))
    else:
        row = truncate(row, p)
    return {token: share for token, share in softmax(row, temperature).items()}
