"""Mixed load on a running server: whole answers, streams, conversations, clients that leave, and requests that are bad.

Every request ends in one of the outcomes below, and none is forgotten: what ends in no proper way is `lost`. An error
of the engine is excused while engines are being killed, and counted as lost otherwise. Knows nothing of processes.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

REQUEST_SECONDS = 120.0  # a request without an end after so long is lost
EXCUSED_SECONDS = 20.0  # after a kill: the engine is started again and loads
WORDS = ("river", "stone", "cloud", "apple", "seven", "quiet", "paper", "green", "north", "lamp")
BAD: list[tuple[bytes, int]] = [
    (b'{"messages": [', 400),
    (b'{"messages": [{"role": "user", "content": "hi"}], "max_tokens": -1}', 400),
    (b'{"messages": [{"role": "user", "content": "hi"}], "no_such_field": 1}', 400),
    (b'{"messages": [{"role": "user", "content": "hi"}], "model": "no-such-model"}', 404),
    (b'{"messages": [{"role": "user", "content": "hi"}], "grammar": "root ::= ("}', 400),
    (b'{"messages": [{"role": "user", "content": "' + b"long " * 4000 + b'"}]}', 400),
    (b'{"messages": [{"role": "user", "content": "hi"}], "logit_bias": {"99999999": 1}}', 400),
    (b"\xff\xfe\x00", 400),
]


@dataclass
class Tally:
    """What came of all requests so far. `lost` says of each what happened."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    lost: list[str] = field(default_factory=list)
    in_flight: int = 0
    last_kill: float = float("-inf")

    def note(self, outcome: str, begin: float, detail: str = "") -> None:
        if outcome == "error" and time.monotonic() - EXCUSED_SECONDS <= self.last_kill:
            outcome = "excused"
        if outcome in ("error", "lost"):
            self.lost.append(f"{outcome} after {time.monotonic() - begin:.1f} s: {detail}"[:300])
        self.outcomes[outcome] += 1


class Client:
    """One client's requests, each of a kind that its generator picks."""

    def __init__(self, http: httpx.AsyncClient, tally: Tally, seed: int) -> None:
        self._http = http
        self._tally = tally
        self._random = random.Random(seed)

    async def run(self, until: float) -> None:
        """Send one request after the other; those that have begun at `until` (monotonic) come to their end."""
        kinds = [self.whole, self.stream, self.leave_stream, self.leave_whole, self.converse, self.bad]
        while time.monotonic() < until:
            (kind,) = self._random.choices(kinds, [4, 6, 3, 1, 2, 3])
            begin = time.monotonic()
            self._tally.in_flight += 1
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    await kind(begin)
            except TimeoutError:
                self._tally.note("lost", begin, f"{kind.__name__}: no end")
            except httpx.HTTPError as error:
                self._tally.note("lost", begin, f"{kind.__name__}: {error!r}")
            finally:
                self._tally.in_flight -= 1

    def _body(self, **changes: Any) -> dict[str, Any]:
        rng = self._random
        body: dict[str, Any] = {
            "model": "demo", "messages": [{"role": "user", "content": " ".join(rng.choices(WORDS, k=rng.randint(3, 150)))}],
            "max_tokens": rng.randint(1, 60), "temperature": rng.choice([0, 0.8]), "seed": rng.randrange(1 << 30),
        }  # fmt: skip
        if rng.random() < 0.2:
            body |= {"n": 2, "temperature": 1.0}
        if rng.random() < 0.2:
            body |= {"frequency_penalty": 0.5, "top_p": 0.9}
        if rng.random() < 0.1:
            body |= {"grammar": 'root ::= ("yes" | "no") " " root?'}
        return body | changes

    async def whole(self, begin: float) -> None:
        answer = await self._http.post("/v1/chat/completions", json=self._body())
        self._judge(answer, begin)

    def _judge(self, answer: httpx.Response, begin: float) -> bool:
        if answer.status_code == 200 and all(choice["finish_reason"] for choice in answer.json()["choices"]):
            self._tally.note("whole", begin)
            return True
        self._tally.note("error", begin, f"{answer.status_code} {answer.text}")
        return False

    async def stream(self, begin: float) -> None:
        async with self._events(self._body(stream=True)) as (status, lines):
            last = failed = ""
            async for line in lines:
                if line.startswith('data: {"error"') or status != 200:
                    failed = line
                elif line.startswith("data: "):
                    last = line
            if failed:
                self._tally.note("error", begin, f"{status} {failed}")
            elif last == "data: [DONE]":
                self._tally.note("streamed", begin)
            else:
                self._tally.note("lost", begin, f"a stream without an end: {last}")

    @contextlib.asynccontextmanager
    async def _events(self, body: dict[str, Any]) -> AsyncIterator[tuple[int, AsyncIterator[str]]]:
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
            yield answer.status_code, answer.aiter_lines()

    async def leave_stream(self, begin: float) -> None:
        """Read a few events of a long answer, then close the connection."""
        body = self._body(stream=True, max_tokens=400, ignore_eos=True)
        body.pop("grammar", None)
        async with self._events(body) as (status, lines):
            patience = self._random.randint(0, 12)
            async for line in lines:
                if status != 200:
                    self._tally.note("error", begin, f"{status} {line}")
                    return
                patience -= line.startswith("data: ")
                if patience < 0:
                    break
        self._tally.note("left", begin)

    async def leave_whole(self, begin: float) -> None:
        """Ask for an answer that is not streamed, and go before it comes."""
        body = self._body(max_tokens=400, ignore_eos=True)
        body.pop("grammar", None)
        with contextlib.suppress(httpx.ReadTimeout):
            answer = await self._http.post(
                "/v1/chat/completions", json=body, timeout=httpx.Timeout(10, read=self._random.uniform(0.05, 1.0))
            )
            self._judge(answer, begin)
            return
        self._tally.note("left", begin)

    async def converse(self, begin: float) -> None:
        """Two turns, the second with the first one's answer: what the prefix store is for."""
        body = self._body(n=1)
        answer = await self._http.post("/v1/chat/completions", json=body)
        if not self._judge(answer, begin):
            return
        message = answer.json()["choices"][0]["message"]
        turns = [*body["messages"], {"role": "assistant", "content": message["content"] or ""}, {"role": "user", "content": "Go on."}]
        self._judge(await self._http.post("/v1/chat/completions", json=body | {"messages": turns}), begin)

    async def bad(self, begin: float) -> None:
        content, expected = self._random.choice(BAD)
        answer = await self._http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
        with contextlib.suppress(json.JSONDecodeError):
            if answer.status_code == expected and answer.json()["error"]["message"]:
                self._tally.note("refused", begin)
                return
        self._tally.note("error", begin, f"{answer.status_code}, not {expected}: {answer.text}")
