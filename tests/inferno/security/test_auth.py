"""Any credential → a principal: forms, ambiguity, expiry, revocation over workers, the cache, loss of the store."""

import asyncio
import os
import random
import sqlite3
import time

import pytest
from sqlalchemy import text

from inferno.errors import ApiError
from inferno.security import auth as auth_module
from inferno.security.accounts import SERVER, KeySpec
from inferno.security.auth import MAX_AGE_SECONDS
from inferno.security.permissions import Policy, allow
from inferno.storage.store import Store
from tests.identity_kit import (
    JWT_SECRET,
    PASSWORD,
    actor,
    bearer,
    host_on,
    make_key,
    make_user,
    run,
    x_api_key,
)

SOURCE = "203.0.113.7"


async def status(worker, headers, query=b""):
    try:
        await worker.auth.authenticate(headers, query, SOURCE)
    except ApiError as error:
        return error.status
    return 200


async def refusal(worker, headers, query=b""):
    with pytest.raises(ApiError) as caught:
        await worker.auth.authenticate(headers, query, SOURCE)
    return caught.value


async def login(worker, name="ann"):
    return await worker.login.login(name, PASSWORD, block=SOURCE)


# ---------------------------------------------------------------- forms


def test_key_7_sec_068_both_headers_mean_the_same(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            ann = await make_user(worker)
            _, secret = await make_key(worker, ann, permissions=["read_models"], models=["a"])
            ways = [bearer(secret), x_api_key(secret), bearer(secret) + x_api_key(secret)]
            ways.append([(b"authorization", b"bEaReR " + secret.encode())])
            found = [await worker.auth.authenticate(headers, b"", SOURCE) for headers in ways]
            assert found[0] == found[1] == found[2] == found[3]
            assert (found[0].id, found[0].permissions, found[0].models) == (ann.id, {"read_models"}, {"a"})
            session = (await login(worker)).token
            assert await status(worker, x_api_key(session)) == 200  # a session may come in either header, too

    run(main())


def test_key_7_sec_069_sec_070_ambiguous_credentials_are_400(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            ann = await make_user(worker)
            _, one = await make_key(worker, ann)
            _, two = await make_key(worker, ann)
            token = (await login(worker)).token
            for headers in (
                bearer(one) + x_api_key(two), bearer(token) + x_api_key(one), x_api_key(one) * 2, bearer(one) * 2,
                bearer(one) + [(b"authorization", b"Basic eDp5")], bearer(one) + x_api_key(""),
                [(b"authorization", b"Basic eDp5")] + x_api_key(one),
            ):  # fmt: skip
                error = await refusal(worker, headers)
                assert (error.status, error.code) == (400, "ambiguous_credentials")
            for query in (
                f"api_key={one}", f"x=1&API_KEY={one}", "access_token=x", f"q={one}", f"q={token}", "api%5Fkey=1",
                f"q=%69nf_{one[4:]}", "token", "key=&x",
            ):  # fmt: skip
                for headers in ([], bearer(one)):
                    error = await refusal(worker, headers, query.encode())
                    assert error.status == 400, query
                    assert one not in error.message
            assert await status(worker, bearer(one), b"after=abc&limit=10") == 200

    run(main())


def test_jwt_9_key_1_every_fault_is_the_same_401_and_the_log_says_why(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            ann = await make_user(worker)
            key, secret = await make_key(worker, ann)
            token = (await login(worker)).token
            gone = await make_user(worker, "gone")
            _, orphan = await make_key(worker, gone)
            await worker.accounts.delete_account(SERVER, gone.id)
            unknown = worker.accounts._key_hasher.create().text
            disabled = await make_user(worker, "off")
            _, of_disabled = await make_key(worker, disabled)
            off_token = (await login(worker, "off")).token
            await worker.accounts.update_account(SERVER, disabled.id, disabled=True)
            await worker.accounts.revoke_key(SERVER, key.id, owner_id=None)
            host.clock.now += 1
            cases = {
                "missing": [], "malformed_key": x_api_key(secret[:-1] + "!"), "revoked": x_api_key(secret),
                "unknown_key": x_api_key(unknown), "unknown_key ": x_api_key(orphan), "disabled": x_api_key(of_disabled),
                "disabled ": bearer(off_token), "malformed": bearer(token[:-3]), "malformed ": [(b"authorization", b"Basic eDp5")],
                "malformed  ": x_api_key("' OR 1=1 --"), "malformed   ": [(b"x-api-key", "ключ".encode())],
                "missing ": x_api_key(""), "too_long": x_api_key("x" * 5000), "malformed    ": bearer(""),
            }  # fmt: skip
            bodies = set()
            for expected, headers in cases.items():
                error = await refusal(worker, headers)
                bodies.add((error.status, str(error.body()), error.headers, error.retry_after))
                last = (await host.records("auth.failure"))[-1]
                assert last["reason"] == expected.strip() or (expected.startswith("malformed    ") and last["reason"] in ("missing", "malformed"))
                assert secret not in str(last)
            assert len(bodies) == 1

    run(main())


def test_key_3_sec_059_a_key_ends_at_its_second(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            ann = await make_user(worker)
            _, secret = await make_key(worker, ann, expires_in_days=1)
            host.clock.now += 86400 - 1
            assert await status(worker, x_api_key(secret)) == 200  # and is in the cache now
            host.clock.now += 1
            assert await status(worker, x_api_key(secret)) == 401

    run(main())


def test_jwt_4_a_cached_session_ends_at_exp_plus_skew(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            await make_user(worker)
            found = await login(worker)
            host.clock.now = found.expires_at + 29
            assert await status(worker, bearer(found.token)) == 200
            host.clock.now += 1
            assert await status(worker, bearer(found.token)) == 401

    run(main())


def test_sec_039_the_cache_is_keyed_by_the_whole_credential(store_url, tmp_path):
    """Two tokens that share a long beginning are two credentials."""

    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            ann, bob = await make_user(worker), await make_user(worker, "bob")
            a, b = (await login(worker)).token, (await login(worker, "bob")).token
            assert a[:64] == b[:64]
            await worker.accounts.update_account(SERVER, bob.id, disabled=True)
            assert (await worker.auth.authenticate(bearer(a), b"", SOURCE)).id == ann.id
            assert await status(worker, bearer(b)) == 401
            assert await status(worker, bearer(a[:-1] + ("A" if a[-1] != "A" else "B"))) == 401

    run(main())


# ---------------------------------------------------------------- revocation


def test_jwt_6_sec_029_sec_030_logout_ends_one_session_on_every_worker_logout_all_both(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            workers = [host.worker() for _ in range(3)]
            ann = await make_user(workers[0])
            first, second = (await login(workers[0])).token, (await login(workers[1])).token
            for worker in workers:
                assert await status(worker, bearer(first)) == await status(worker, bearer(second)) == 200
            principal = await workers[1].auth.authenticate(bearer(first), b"", SOURCE)
            await workers[1].login.logout(principal, actor(ann))
            for worker in workers:
                assert await status(worker, bearer(first)) == 401
                assert await status(worker, bearer(second)) == 200
            await workers[2].accounts.end_all_sessions(actor(ann), ann.id)
            for worker in workers:
                assert await status(worker, bearer(second)) == 401
            assert [r["reason"] for r in await host.records("auth.logout")] == ["one", "all"]

    run(main())


def test_jwt_6_sec_036_a_revocation_survives_a_restart(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            ann = await make_user(worker)
            token = (await login(worker)).token
            principal = await worker.auth.authenticate(bearer(token), b"", SOURCE)
            await worker.login.logout(principal, actor(ann))
        async with host_on(store_url, tmp_path) as host:
            assert await status(host.worker(), bearer(token)) == 401

    run(main())


@pytest.mark.parametrize("action", ["disable", "delete", "password"])
def test_jwt_6_sec_031_sec_033_sec_034_sec_073_account_changes_hit_sessions_and_keys_at_once(store_url, tmp_path, action):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            workers = [host.worker() for _ in range(4)]
            ann = await make_user(workers[0])
            token = (await login(workers[0])).token
            _, secret = await make_key(workers[0], ann)
            for worker in workers:
                assert await status(worker, bearer(token)) == await status(worker, x_api_key(secret)) == 200
            accounts = workers[1].accounts
            if action == "disable":
                await accounts.update_account(SERVER, ann.id, disabled=True)
            elif action == "delete":
                await accounts.delete_account(SERVER, ann.id)
                await make_user(workers[2])  # of the same name: another account
            else:
                await accounts.set_password(SERVER, ann.id, "another-good-Phrase8")
            for worker in workers:
                assert await status(worker, bearer(token)) == 401
                assert await status(worker, x_api_key(secret)) == (200 if action == "password" else 401)
            if action == "disable":
                await accounts.update_account(SERVER, ann.id, disabled=False)
                assert await status(workers[3], bearer(token)) == 401  # the session does not come back
                assert await status(workers[3], x_api_key(secret)) == 200

    run(main())


def test_jwt_7_sec_032_the_role_comes_from_the_store(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            one, two = host.worker(), host.worker()
            await one.accounts.bootstrap(PASSWORD)
            bob = await make_user(one, "bob", "admin")
            token = (await login(one, "bob")).token
            _, secret = await make_key(one, bob, permissions=["manage_users", "read_models"])
            policy = Policy(permissions=("manage_users",))
            for headers in (bearer(token), x_api_key(secret)):
                assert allow(policy, await two.auth.authenticate(headers, b"", SOURCE)).allowed
            await one.accounts.update_account(SERVER, bob.id, role="user")
            for headers in (bearer(token), x_api_key(secret)):
                principal = await two.auth.authenticate(headers, b"", SOURCE)  # no new login
                assert allow(policy, principal).reason == "missing:manage_users"
                assert "read_models" in principal.permissions

    run(main())


@pytest.mark.parametrize(("role", "weight"), [("admin", 2.0), ("service", 2.0), ("user", 1.0), ("guest", 0.5)])
def test_a_role_gives_the_accounts_share_of_the_engine(store_url, tmp_path, role, weight):
    """By session and by key, in the next request after the role changed."""

    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            await worker.accounts.bootstrap(PASSWORD)
            bob = await make_user(worker, "bob", "guest")
            _, secret = await make_key(worker, bob, permissions=["read_models"])
            credentials = [bearer((await login(worker, "bob")).token), x_api_key(secret)]
            for headers in credentials:
                assert (await worker.auth.authenticate(headers, b"", SOURCE)).weight == 0.5
            await worker.accounts.update_account(SERVER, bob.id, role=role)
            for headers in credentials:
                assert (await worker.auth.authenticate(headers, b"", SOURCE)).weight == weight

    run(main())


def test_key_5_sec_061_revocation_under_400_parallel_calls_over_four_workers(store_url, tmp_path):
    """No call that starts after the revoking call has answered passes, and some pass before it."""

    async def main():
        async with host_on(store_url, tmp_path) as host:
            workers = [host.worker() for _ in range(4)]
            ann = await make_user(workers[0])
            key, secret = await make_key(workers[0], ann)
            for worker in workers:  # the key is in use: in the cache of each
                assert await status(worker, x_api_key(secret)) == 200
            answered_at = None
            outcomes = []

            async def call(i):
                await asyncio.sleep(random.random() * 0.2)
                started = time.monotonic()
                outcomes.append((started, await status(workers[i % 4], x_api_key(secret))))

            async def revoke():
                nonlocal answered_at
                await asyncio.sleep(0.1)
                await workers[0].accounts.revoke_key(actor(ann), key.id, owner_id=ann.id)
                answered_at = time.monotonic()

            await asyncio.gather(revoke(), *(call(i) for i in range(400)))
            for worker in workers:
                outcomes.append((time.monotonic(), await status(worker, x_api_key(secret))))
            late = [code for started, code in outcomes if started > answered_at]
            assert set(late) == {401}
            assert any(code == 200 for started, code in outcomes if started < answered_at)
            assert {code for _, code in outcomes} == {200, 401}

    run(main())


def test_sec_062_a_slow_answer_of_the_store_does_not_bring_a_key_back(store_url, tmp_path, monkeypatch):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker, other = host.worker(), host.worker()
            ann = await make_user(worker)
            key, secret = await make_key(worker, ann)
            was_loaded, hold = asyncio.Event(), asyncio.Event()
            real = auth_module._check_key

            loaded = worker.auth._load

            async def slow(credential):
                entry = await loaded(credential)
                was_loaded.set()
                await hold.wait()
                return entry

            monkeypatch.setattr(worker.auth, "_load", slow)
            in_flight = asyncio.create_task(status(worker, x_api_key(secret)))
            await was_loaded.wait()
            await other.accounts.revoke_key(actor(ann), key.id, owner_id=ann.id)
            hold.set()
            assert await in_flight == 200  # it started before the revocation
            assert await status(worker, x_api_key(secret)) == 401
            assert real is auth_module._check_key

    run(main())


def test_jwt_7_sec_031_running_streams_end_within_a_second(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker, other = host.worker(), host.worker()
            bob = await make_user(worker, "bob")
            _, of_bob = await make_key(worker, bob)
            unharmed = await worker.auth.authenticate(x_api_key(of_bob), b"", SOURCE)
            worker.auth.start()
            seconds = []
            while min(seconds, default=1.0) >= 1.0:  # a machine that stands still for a moment is no finding, five times it is
                assert len(seconds) < 5, seconds
                ann = await make_user(worker, f"ann{len(seconds)}")
                _, secret = await make_key(worker, ann)
                principal = await worker.auth.authenticate(x_api_key(secret), b"", SOURCE)
                assert worker.auth.is_current(principal)
                assert worker.auth.is_current(unharmed)
                await other.accounts.update_account(SERVER, ann.id, disabled=True)
                host.table.bump_all()  # such as after a worker died: nobody else's stream ends
                started = time.monotonic()
                async with asyncio.timeout(30):
                    while worker.auth.is_current(principal):
                        await asyncio.sleep(0.02)
                seconds.append(time.monotonic() - started)
            await worker.auth.check_streams()
            assert worker.auth.is_current(unharmed)

    run(main())


# ---------------------------------------------------------------- settings, uses, rotation


def test_key_1_api_keys_can_be_turned_off(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            on, off = host.worker(), host.worker(keys_enabled=False)
            ann = await make_user(on)
            _, secret = await make_key(on, ann)
            assert await status(on, x_api_key(secret)) == 200
            assert await status(off, x_api_key(secret)) == 401
            assert await status(off, bearer((await login(on)).token)) == 200
            assert (await host.records("auth.failure"))[-1]["reason"] == "api_keys_disabled"

    run(main())


def test_jwt_8_sec_035_rotation_over_the_store(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            old = host.worker()
            await make_user(old)
            token = (await login(old)).token
            rotated = host.worker(secret=b"a fresh signing secret, also long enough", previous=JWT_SECRET)
            done = host.worker(secret=b"a fresh signing secret, also long enough")
            assert await status(rotated, bearer(token)) == 200
            assert await status(done, bearer(token)) == 401

    run(main())


def test_key_6_sec_071_last_use_is_written_in_the_background_and_never_goes_back(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            ann = await make_user(worker)
            _, secret = await make_key(worker, ann)
            for _ in range(50):
                await worker.auth.authenticate(x_api_key(secret), b"", SOURCE)
            (key,) = await worker.accounts.list_keys(ann.id)
            assert key.last_used_at is None  # nothing was written on the way of a request
            await worker.auth.write_uses()
            (key,) = await worker.accounts.list_keys(ann.id)
            assert key.last_used_at == int(host.clock.now)
            host.clock.now -= 500
            await worker.auth.authenticate(x_api_key(secret), b"", SOURCE)
            await worker.auth.write_uses()
            (key,) = await worker.accounts.list_keys(ann.id)
            assert key.last_used_at == int(host.clock.now) + 500

    run(main())


def test_aud_2_the_first_use_of_a_key_per_source_and_hour_is_recorded_with_the_last_count(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            ann = await make_user(worker)
            key, secret = await make_key(worker, ann)
            for _ in range(7):
                await worker.auth.authenticate(x_api_key(secret), b"", SOURCE)
            await worker.auth.authenticate(x_api_key(secret), b"", "198.51.100.1")
            await host.records()
            host.clock.now += 3600
            await worker.auth.authenticate(x_api_key(secret), b"", SOURCE)
            found = await host.records("auth.key")
            assert [(r["target"], r["ip"], r["reason"]) for r in found] == [
                (key.id, SOURCE, "first_use count=0"),
                (key.id, "198.51.100.1", "first_use count=0"),
                (key.id, SOURCE, "first_use count=7"),
            ]

    run(main())


# ---------------------------------------------------------------- loss of the store


def test_without_the_store_a_fresh_cache_hit_goes_on_and_all_else_is_refused(tmp_path, monkeypatch):
    async def main():
        url = f"sqlite:///{tmp_path}/inferno.db"
        async with host_on(url, tmp_path) as host:
            worker = host.worker()
            ann = await make_user(worker)
            _, secret = await make_key(worker, ann)
            _, unseen = await make_key(worker, ann)
            token = (await login(worker)).token
            for headers in (x_api_key(secret), bearer(token)):
                assert await status(worker, headers) == 200
            await worker.store.close()
            lost = Store(f"sqlite:///{tmp_path}/lost/inferno.db")
            monkeypatch.setattr(worker.auth, "_store", lost)
            monkeypatch.setattr(worker.login, "_store", lost)
            monkeypatch.setattr(worker.accounts, "store", lost)
            assert await status(worker, x_api_key(secret)) == 200
            assert await status(worker, bearer(token)) == 200
            assert await status(worker, x_api_key(unseen)) == 503
            assert await status(worker, x_api_key(secret[:-1] + "!")) == 401  # form needs no store
            with pytest.raises(ApiError) as caught:
                await login(worker)
            assert caught.value.code == "store_unavailable"
            with pytest.raises(ApiError) as caught:
                await worker.accounts.create_key(actor(ann), ann.id, KeySpec(name="n"))
            assert caught.value.code == "store_unavailable"
            host.table.bump(b"u:" + ann.id.encode())
            assert await status(worker, x_api_key(secret)) == 503  # something changed: not on our word
            await lost.close()

    run(main())


def test_without_the_store_a_cached_credential_lasts_at_most_its_age(tmp_path, monkeypatch):
    async def main():
        async with host_on(f"sqlite:///{tmp_path}/inferno.db", tmp_path) as host:
            worker = host.worker()
            ann = await make_user(worker)
            _, secret = await make_key(worker, ann)
            assert await status(worker, x_api_key(secret)) == 200
            lost = Store(f"sqlite:///{tmp_path}/lost/inferno.db")
            monkeypatch.setattr(worker.auth, "_store", lost)
            host.clock.now += MAX_AGE_SECONDS - 1
            assert await status(worker, x_api_key(secret)) == 200
            host.clock.now += 1
            assert await status(worker, x_api_key(secret)) == 503
            await lost.close()

    run(main())


def test_sec_074_hostile_keys_leave_the_store_unchanged(tmp_path):
    async def main():
        async with host_on(f"sqlite:///{tmp_path}/inferno.db", tmp_path) as host:
            worker = host.worker()
            await make_user(worker)
            async with worker.store.read() as connection:
                before = (await connection.execute(text("SELECT * FROM accounts"))).all()
            rng = random.Random(74)
            for _ in range(300):
                junk = rng.randbytes(rng.randrange(200)).replace(b"\n", b"")
                for headers in ([(b"x-api-key", junk)], [(b"authorization", junk)], [(b"authorization", b"Bearer " + junk)]):
                    assert await status(worker, headers) == 401
            async with worker.store.read() as connection:
                assert (await connection.execute(text("SELECT * FROM accounts"))).all() == before

    run(main())
    with sqlite3.connect(tmp_path / "inferno.db") as check:
        assert check.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    check.close()
    assert os.path.exists(tmp_path / "inferno.db")


def test_the_cache_is_bounded(store_url, tmp_path, monkeypatch):
    monkeypatch.setattr(auth_module, "MAX_ENTRIES", 3)

    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            ann = await make_user(worker)
            for i in range(6):
                _, secret = await make_key(worker, ann, f"k{i}")
                assert await status(worker, x_api_key(secret)) == 200
            assert len(worker.auth._cache) == 3
            assert len(worker.auth._uses) == 3

    run(main())
