"""Recurrent, hybrid and sliding-window models over HTTP: the same answers with and without a prefix, and what is public."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.end_to_end.harness import GENEROUS, RunningServer, running
from tests.end_to_end.test_tenants import account
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.e2e
KINDS = {"recurrent": "mamba2-dense", "hybrid": "falcon-h1-dense", "windows": "gemma3-dense", "plain": "llama-dense"}
PUBLIC = "You are the helper of a small shop for paper lamps. " * 4
FIRST = "The quiet river bends around seven grey stones. " * 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("kinds")
    config = GENEROUS.replace("slots = 8", "slots = 4\nthreads = 1").replace(
        "[security]", "[security]\noutput_sanitization_enabled = false"
    )
    for name, kind in (KINDS | {"float": "llama-dense"}).items():
        path = write_tiny_model(folder / f"{name}.gguf", kind, "F16" if name == "float" else "Q8_0")
        config += f"\n[models.{name}]\npath = {str(path)!r}\npublic_prefixes = [{PUBLIC!r}]\n"
    with running(folder, config=config, model=None, arguments=()) as started:
        yield started


def ask(client: Any, model: str, *contents: str, **options: Any) -> dict[str, Any]:
    """Ask about a system message and turns; return the answer as JSON."""
    roles = ["system", *["user", "assistant"] * len(contents)]
    answer = client.post(
        "/v1/chat/completions",
        json={
            "model": model, "messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)],
            "max_tokens": 8, "temperature": 0, "ignore_eos": True, "logprobs": True, "top_logprobs": 4, **options,
        },
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def cached(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def shown(answer: dict[str, Any]) -> str:
    return json.dumps([answer["choices"], answer["system_fingerprint"]])


@pytest.mark.parametrize("model", list(KINDS))
def test_a_prefix_changes_nothing_but_the_count(server: RunningServer, model: str) -> None:
    with server.http(headers={"X-API-Key": server.create_key()["key"]}, timeout=120) as client:
        cold = ask(client, model, "Short.", FIRST, cache_prompt=False)
        assert not cold["system_fingerprint"].endswith("-approx")
        first = ask(client, model, "Short.", FIRST)
        with ThreadPoolExecutor(6) as pool:
            others = [pool.submit(ask, client, model, "Other.", FIRST[i:], cache_prompt=False, max_tokens=20) for i in range(5)]
            again = pool.submit(ask, client, model, "Short.", FIRST).result()
            assert all(other.result() for other in others)
        assert shown(first) == shown(again) == shown(cold)
        # The public prefix begins with what the template puts before any system message; where a memory can be cut there.
        assert (cached(cold), cached(first)) == (0, 8 if model == "plain" else 0)
        assert cached(again) == (cold["usage"]["prompt_tokens"] - 2) // 64 * 64 > 0

        turns = ("Short.", FIRST, cold["choices"][0]["message"]["content"], "And then? " * 12)
        going_on = ask(client, model, *turns)
        assert cached(going_on) >= cached(again)
        assert shown(going_on) == shown(ask(client, model, *turns, cache_prompt=False))

        # Half of the first prompt is no place where a state ends: only a memory that can be cut finds it.
        branch = ("Short.", FIRST[: len(FIRST) * 3 // 4] + "But once upon a time it rained for days and days.")
        other_way = ask(client, model, *branch)
        assert (cached(other_way) > 0) == (model == "plain")
        assert shown(other_way) == shown(ask(client, model, *branch, cache_prompt=False))


@pytest.mark.parametrize("model", list(KINDS))
def test_a_public_prefix_serves_two_accounts_and_nothing_else_does(server: RunningServer, model: str) -> None:
    anna, ben = (account(server) for _ in range(2))
    with (
        server.http(headers={"X-API-Key": anna.api_key}, timeout=120) as hers,
        server.http(headers={"X-API-Key": ben.api_key}, timeout=120) as his,
    ):
        cold = ask(hers, model, PUBLIC, FIRST, cache_prompt=False)
        first = ask(hers, model, PUBLIC, FIRST)
        again = ask(hers, model, PUBLIC, FIRST)
        other = ask(his, model, PUBLIC, FIRST)
        public = cached(first)
        assert len(PUBLIC) // 64 * 64 <= public <= len(PUBLIC) + 64
        assert cached(other) == public < cached(again)
        assert shown(cold) == shown(first) == shown(again) == shown(other)
        private = PUBLIC.replace("paper", "glass")
        alike = 32 if model == "plain" else 0  # of the 47 tokens that it has in common with the public one
        assert cached(ask(hers, model, private, FIRST)) == alike
        assert cached(ask(his, model, private, FIRST)) == alike


def test_a_fingerprint_that_promises_nothing_says_so(server: RunningServer) -> None:
    with server.http(headers={"X-API-Key": server.create_key()["key"]}, timeout=120) as client:
        assert ask(client, "float", "Short.", FIRST)["system_fingerprint"].endswith("-approx")
