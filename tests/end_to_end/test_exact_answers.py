"""CONTRACT 7.3 over HTTP: the same request gives the same bytes alone and among 32 others, cold, cached, after a restart.

The demo model in each promised quantization, with all that stands between a client and the engine: template, queue,
prefix store, redaction, JSON. Log probabilities are compared too, since tokens alone would hide small differences.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.end_to_end.harness import GENEROUS, RunningServer, eventually, running
from tests.models import demo_as

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
NUM_OTHERS = 32
SEEDS = (11, 12, 13)
TEMPLATE = 24  # tokens that the template of the demo model puts before the first message of every conversation
WORDS = ("river", "stone", "cloud", "apple", "seven", "quiet", "paper", "green", "north", "lamp")
GREEDY = {"temperature": 0}
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "frequency_penalty": 0.3}
# Pinned, for a busy machine may assume instead of measuring, and another choice is another fingerprint.
FLASH_ATTENTION = {"Q4_1": "on", "Q4_0": "off", "Q8_0": "on"}


def text(seed: int, count: int) -> str:
    return " ".join(WORDS[(seed * 7 + i * i + i // 3) % len(WORDS)] for i in range(count))


@dataclass(frozen=True)
class Case:
    seed: int
    sampling: tuple[tuple[str, float], ...]

    def body(self, **changes: Any) -> dict[str, Any]:
        return {
            "model": "demo", "messages": [{"role": "user", "content": f"{text(self.seed, 80)}. Continue."}],
            "max_tokens": 8, "seed": self.seed, "logprobs": True, "top_logprobs": 3, **dict(self.sampling), **changes,
        }  # fmt: skip


CASES = [Case(seed, tuple(sampling.items())) for seed in SEEDS for sampling in (GREEDY, SAMPLED)]
OTHERS: list[dict[str, Any]] = [  # short, but for a few: what matters is the company, and slow machines run this too
    {"model": "demo", "prompt": text(100 + i, 70 if i % 16 == 3 else 1 + i % 9), "max_tokens": 4 + i % 9, "seed": i,
     "ignore_eos": True, "cache_prompt": False}
    for i in range(NUM_OTHERS)
]  # fmt: skip


@pytest.fixture(scope="module", params=list(FLASH_ATTENTION))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    config = GENEROUS.replace("slots = 8\ncontext_size = 1024", f"""\
slots = {NUM_OTHERS + len(CASES)}
threads = 1
context_size = 384
flash_attention = "{FLASH_ATTENTION[request.param]}"
prefix_cache_mb = 64
""")
    with running(tmp_path_factory.mktemp("exact"), config=config, model=demo_as(request.param), workers=2) as started:
        yield started


def path(body: dict[str, Any]) -> str:
    return "/v1/completions" if "prompt" in body else "/v1/chat/completions"


def together(server: RunningServer, key: str, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Send all at once; return the answers in order."""

    async def main() -> list[dict[str, Any]]:
        limits = httpx.Limits(max_connections=len(bodies))
        async with httpx.AsyncClient(base_url=server.url, headers={"X-API-Key": key}, timeout=300, limits=limits) as client:
            answers = await asyncio.gather(*(client.post(path(body), json=body) for body in bodies))
        assert [answer.status_code for answer in answers] == [200] * len(answers), [a.text for a in answers if a.status_code != 200]
        return [answer.json() for answer in answers]

    return asyncio.run(main())


def alone(server: RunningServer, key: str, **changes: Any) -> list[dict[str, Any]]:
    return [together(server, key, [case.body(**changes)])[0] for case in CASES]


def among(server: RunningServer, key: str, **changes: Any) -> list[dict[str, Any]]:
    """The cases spread among the others, all at once."""
    bodies = list(OTHERS)
    places = [5 + 5 * number for number in range(len(CASES))]
    for place, case in zip(places, CASES, strict=True):
        bodies.insert(place, case.body(**changes))
    answers = together(server, key, bodies)
    return [answers[place] for place in places]


def shown(answers: list[dict[str, Any]]) -> list[str]:
    """What must be the same to the last byte."""
    return [json.dumps([answer["choices"], answer["system_fingerprint"]]) for answer in answers]


def cached(answers: list[dict[str, Any]]) -> list[int]:
    return [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]


def test_the_same_bytes_whatever_happens_beside_before_and_in_between(server: RunningServer) -> None:
    key = server.create_key()["key"]
    cold = alone(server, key, cache_prompt=False)
    assert cached(cold) == [0] * len(CASES)
    fingerprints = {answer["system_fingerprint"] for answer in cold}
    assert len(fingerprints) == 1
    assert not fingerprints.pop().endswith("-approx")  # promised for these, so nothing below may differ
    assert all(answer["choices"][0]["message"]["content"] for answer in cold)
    assert len(set(shown(cold))) == len(CASES)  # seeds and sampling matter
    assert shown(among(server, key, cache_prompt=False)) == shown(cold)

    first = [together(server, key, [case.body()])[0] for case in CASES[::2]]  # they fill the store for the sampled ones too
    hits = among(server, key)
    assert shown(first) == shown(cold)[::2]
    assert shown(hits) == shown(cold)
    whole = [(answer["usage"]["prompt_tokens"] - 2) // 64 * 64 for answer in cold]
    assert min(whole) >= 64
    assert cached(first) == [0] + [TEMPLATE] * (len(SEEDS) - 1)
    assert cached(hits) == whole

    (engine,) = server.processes("inferno.engine.main")
    os.kill(engine, signal.SIGKILL)
    assert eventually(lambda: server.processes("inferno.engine.main") not in ([], [engine]), 60)
    server.wait_for("/readyz")
    after = among(server, key)
    # The store went with the engine. Of each pair one is evaluated anew, but for what the template gives all of them.
    assert all(min(pair) <= TEMPLATE for pair in zip(cached(after)[::2], cached(after)[1::2], strict=True))
    assert shown(after) == shown(cold)


def test_a_stream_brings_the_same_text(server: RunningServer) -> None:
    key = server.create_key()["key"]
    for case in CASES[:2]:
        whole = together(server, key, [case.body()])[0]["choices"][0]
        with server.client(key) as client:
            body = case.body(stream=True, extra_body={})
            pieces = [choice for chunk in client.chat.completions.create(**body) for choice in chunk.choices]
        assert "".join(piece.delta.content or "" for piece in pieces) == whole["message"]["content"]
        entries = [entry.model_dump() for piece in pieces if piece.logprobs for entry in piece.logprobs.content or []]
        assert entries == whole["logprobs"]["content"]
