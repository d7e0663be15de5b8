"""What does it cost to know who calls, for each request?

Measured in one process and one run: a cached API key and a cached session among the headers of an ordinary client,
with the check of the shared epochs; the same without the cache for the pure part (form and checksum; HMAC; JWT
signature and claims), and PyJWT's own decode as the peer. One argon2id verification for scale. Not measured: the
network, the event loop, the store. Warm-up, median of seven rounds. Last line: JSON.
"""

from __future__ import annotations

import asyncio
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jwt

from inferno.security.keys import key_id_of
from inferno.security.passwords import Hasher
from inferno.security.sessions import AUDIENCE, ISSUER, _derive
from tests.identity_kit import JWT_SECRET, PASSWORD, host_on, make_key, make_user

ROUNDS = 7


def microseconds(run: Callable[[], object], num_calls: int) -> float:
    for _ in range(num_calls // 10):
        run()
    found = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(num_calls):
            run()
        found.append((time.perf_counter() - begin) / num_calls * 1e6)
    return statistics.median(found)


def headers_of(name: bytes, value: bytes) -> list[tuple[bytes, bytes]]:
    """The ten headers that the openai client sends, with the credential where it sends it."""
    return [
        (b"host", b"127.0.0.1:8080"), (b"accept-encoding", b"gzip, deflate"), (b"connection", b"keep-alive"),
        (b"accept", b"application/json"), (b"content-type", b"application/json"), (b"user-agent", b"OpenAI/Python"),
        (b"x-stainless-lang", b"python"), (name, value), (b"x-stainless-retry-count", b"0"), (b"content-length", b"120"),
    ]  # fmt: skip


async def measure(folder: Path) -> dict[str, float]:
    async with host_on(f"sqlite:///{folder}/inferno.db", folder) as host:
        host.clock.now = int(time.time())
        worker = host.worker(clock=time.time)
        account = await make_user(worker)
        _, key = await make_key(worker, account)
        token = (await worker.login.login("ann", PASSWORD, block="203.0.113.7")).token
        by_key = headers_of(b"authorization", b"Bearer " + key.encode())
        by_token = headers_of(b"authorization", b"Bearer " + token.encode())
        for headers in (by_key, by_token):
            await worker.auth.authenticate(headers, b"", "203.0.113.7")
            if worker.auth.cached(headers, b"", "203.0.113.7") is None:
                raise SystemExit("the credential is not in the cache")
        hasher = worker.accounts._key_hasher
        digest = hasher.digest(key)
        now = int(time.time())
        signing_key = _derive(JWT_SECRET).key
        heavy = Hasher()
        stored = heavy.hash(PASSWORD)
        return {
            "cached_key": microseconds(lambda: worker.auth.cached(by_key, b"", "203.0.113.7"), 50_000),
            "cached_session": microseconds(lambda: worker.auth.cached(by_token, b"", "203.0.113.7"), 50_000),
            "epoch_read": microseconds(lambda: worker.table.read(b"u:acct_0123456789abcdef"), 100_000),
            "key_form_and_checksum": microseconds(lambda: key_id_of(key), 20_000),
            "key_hmac_compare": microseconds(lambda: hasher.matches(key, digest), 20_000),
            "session_verify": microseconds(lambda: worker.tokens.verify(token, now), 5_000),
            "pyjwt_decode": microseconds(
                lambda: jwt.decode(token, signing_key, algorithms=["HS256"], audience=AUDIENCE, issuer=ISSUER), 5_000
            ),
            "argon2id_verify": microseconds(lambda: heavy.verify(stored, PASSWORD), 10),
        }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(Path(folder)))
    for name, value in found.items():
        print(f"{name:>24} {value:10.2f} µs")
    print(json.dumps({"benchmark": "identity", "microseconds": found, "machine": platform.machine(),
                      "python": platform.python_version()}))  # fmt: skip


if __name__ == "__main__":
    main()
