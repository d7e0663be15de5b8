"""Login: one path for all failures, rehash, limits before hashing, password change."""

import asyncio
import json

import pytest

from inferno.errors import ApiError
from inferno.security.accounts import SERVER
from inferno.security.passwords import Hasher
from tests.conftest import CASES
from tests.identity_kit import CHEAP, PASSWORD, actor, bearer, host_on, make_user, run

BLOCK = "203.0.113.7"


async def refused(coroutine):
    with pytest.raises(ApiError) as caught:
        await coroutine
    return caught.value


def test_pwd_2_sec_040_unknown_wrong_and_disabled_take_the_same_path(store_url, tmp_path, monkeypatch):
    """On structure: each ends in exactly one verification of a full hash, one durable record, the same answer."""

    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            await make_user(worker)
            off = await make_user(worker, "off")
            await worker.accounts.update_account(SERVER, off.id, disabled=True)
            verified = []
            real = CHEAP._argon.verify
            monkeypatch.setattr(CHEAP, "_argon", _Spy(CHEAP._argon, verified))
            answers = set()
            for name, password in (
                ("ann", "wrong-Password-1"), ("nobody", "wrong-Password-1"), ("off", PASSWORD), ("\u0430nn", PASSWORD),
                ("' OR 1=1 --", PASSWORD), ("x" * 1000, PASSWORD),
            ):  # fmt: skip
                verified.clear()
                error = await refused(worker.login.login(name, password, block=f"block-{name[:9]}"))
                answers.add((error.status, str(error.body()), error.headers, error.retry_after))
                assert len(verified) == 1
                assert verified[0].startswith("$argon2id$")
            assert len(answers) == 1
            assert next(iter(answers))[0] == 401
            found = await host.records("auth.login")
            assert [r["reason"] for r in found] == [
                "wrong_password", "unknown_user", "disabled", "unknown_user", "unknown_user", "unknown_user",
            ]  # fmt: skip
            assert real is not None

    run(main())


class _Spy:
    def __init__(self, real, seen):
        self._real = real
        self._seen = seen

    def verify(self, stored, password):
        self._seen.append(stored)
        return self._real.verify(stored, password)

    def __getattr__(self, name):
        return getattr(self._real, name)


def test_pwd_2_the_dummy_has_the_current_parameters():
    hasher = Hasher()
    assert hasher.dummy.split("$")[:4] == hasher.hash(PASSWORD).split("$")[:4]


def test_pwd_1_sec_042_an_old_hash_is_upgraded_at_login(store_url, tmp_path, monkeypatch):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            ann = await make_user(worker)
            stronger = Hasher(memory_kib=128, passes=1)
            monkeypatch.setattr(worker.passwords, "hasher", stronger)
            before = (await worker.accounts.account(ann.id)).password_hash
            assert "m=64," in before
            found = await worker.login.login("ann", PASSWORD, block=BLOCK)
            after = (await worker.accounts.account(ann.id)).password_hash
            assert "m=128," in after
            await worker.auth.authenticate(bearer(found.token), b"", BLOCK)
            await worker.login.login("ANN", PASSWORD, block=BLOCK)  # names have no case
            assert (await worker.accounts.account(ann.id)).password_hash == after

    run(main())


def test_sec_044_too_long_a_password_is_refused_before_hashing(store_url, tmp_path, monkeypatch):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            await make_user(worker)
            assert (await refused(worker.login.login("ann", "x" * 1024, block=BLOCK))).status == 401
            monkeypatch.setattr(CHEAP, "verify", None)
            error = await refused(worker.login.login("ann", "x" * 1025, block=BLOCK))
            assert (error.status, error.param) == (400, "password")

    run(main())


def test_pwd_4_sec_047_right_password_in_the_delay_gets_the_same_429_then_works(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker, other = host.worker(), host.worker()
            await make_user(worker)
            for i in range(6):
                assert (await refused((worker, other)[i % 2].login.login("ann", "wrong-Password-1", block=BLOCK))).status == 401
            wrong = await refused(other.login.login("ann", "wrong-Password-1", block=BLOCK))
            right = await refused(worker.login.login("ann", PASSWORD, block=BLOCK))
            assert (wrong.status, wrong.body(), wrong.retry_after) == (right.status, right.body(), right.retry_after)
            assert right.status == 429
            assert (await worker.login.login("ann", PASSWORD, block="198.51.100.9")).token  # sec-048
            host.clock.now += right.retry_after + 0.001
            assert (await worker.login.login("ann", PASSWORD, block=BLOCK)).token

    run(main())


def test_jwt_6_sec_033_a_new_password_needs_the_current_one_and_ends_sessions(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            ann = await make_user(worker)
            token = (await worker.login.login("ann", PASSWORD, block=BLOCK)).token
            principal = await worker.auth.authenticate(bearer(token), b"", BLOCK)
            fresh = "another-good-Phrase8"
            error = await refused(worker.login.change_password(principal, actor(ann), "wrong-Password-1", fresh))
            assert error.status == 403
            error = await refused(worker.login.change_password(principal, actor(ann), PASSWORD, "password1234"))
            assert error.code == "weak_password"
            await worker.auth.authenticate(bearer(token), b"", BLOCK)
            await worker.login.change_password(principal, actor(ann), PASSWORD, fresh)
            assert (await refused(worker.auth.authenticate(bearer(token), b"", BLOCK))).status == 401
            assert (await refused(worker.login.login("ann", PASSWORD, block=BLOCK))).status == 401
            assert (await worker.login.login("ann", fresh, block=BLOCK)).token

    run(main())


def test_two_changes_of_a_password_at_once_one_wins(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            ann = await make_user(worker)
            token = (await worker.login.login("ann", PASSWORD, block=BLOCK)).token
            principal = await worker.auth.authenticate(bearer(token), b"", BLOCK)
            results = await asyncio.gather(
                *(worker.login.change_password(principal, actor(ann), PASSWORD, f"another-Phrase-{i}7") for i in range(3)),
                return_exceptions=True,
            )
            assert results.count(None) == 1

    run(main())


def test_sec_148_no_password_reaches_the_log(store_url, tmp_path):
    canary = "canary-Password-93"

    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            await worker.accounts.create_account(SERVER, username="ann", password=canary, role="user")
            await worker.login.login("ann", canary, block=BLOCK)
            await refused(worker.login.login("bob", canary, block=BLOCK))
            await host.records()

    run(main())
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert canary.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    "case",
    [c for c in map(json.loads, (CASES / "scan_attack.jsonl").read_text().splitlines()) if c["category"] == "log-injection"],
    ids=lambda case: case["id"],
)
def test_sec_147_hostile_user_names_leave_one_whole_record(tmp_path, case):
    async def main():
        async with host_on(f"sqlite:///{tmp_path}/inferno.db", tmp_path) as host:
            worker = host.worker()
            assert (await refused(worker.login.login(case["text"], PASSWORD, block=BLOCK))).status == 401
            (found,) = await host.records("auth.login")
            assert found["target"] == case["text"][:65]
            assert host.verify().status == 0

    run(main())
