"""Accounts and keys: rules, rights, audit before change; the same body over SQLite and PostgreSQL."""

import asyncio
import sqlite3

import msgspec
import pytest
from sqlalchemy import text

from inferno.errors import ApiError
from inferno.security import audit
from inferno.security.accounts import SERVER, Actor, KeyPolicy, KeySpec
from inferno.security.names import check_key_name, check_username, name_key, skeleton
from inferno.security.permissions import PERMISSIONS, ROLES
from inferno.security.principal import KeyLimits
from tests.identity_kit import PASSWORD, actor, host_on, make_key, make_user, run

DAY = 86400


async def refused(coroutine, code):
    with pytest.raises(ApiError) as caught:
        await coroutine
    assert caught.value.code == code, caught.value.message
    return caught.value


# ---------------------------------------------------------------- accounts


def test_pwd_6_the_bootstrap_admin_only_enters_an_empty_store(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            both = await asyncio.gather(worker.accounts.bootstrap(PASSWORD), worker.accounts.bootstrap(PASSWORD))
            assert [made.name for made in both if made] == ["admin"]
            assert await worker.accounts.bootstrap("another-good-Phrase8") is None
            assert len(await worker.accounts.list_accounts()) == 1
            with pytest.raises(ApiError):
                await worker.login.login("admin", "another-good-Phrase8", block="10.0.0.1")
            assert (await worker.login.login("admin", PASSWORD, block="10.0.0.1")).token
            assert len(await host.records("user.create")) == 1

    run(main())


def test_pwd_7_sec_053_same_and_look_alike_names_are_refused(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            await worker.accounts.bootstrap(PASSWORD)
            for name in ("Admin", "ADMIN", "\u0430dmin", "adm\u0131n", "\uff41dmin", "admln", "adm1n", "\u00e1dmin"):
                with pytest.raises(ApiError) as caught:
                    await make_user(worker, name)
                assert caught.value.code in ("conflict", "invalid_value"), name
            await make_user(worker, "paul")
            await refused(make_user(worker, "Paul"), "conflict")
            await refused(make_user(worker, "p\u0430ul"), "conflict")  # of any user, where letters are foreign
            await make_user(worker, "J\u00fcrgen")
            await make_user(worker, "\u738b\u5c0f\u660e")

    run(main())


@pytest.mark.parametrize("name", ["", " ", "a b", ".", "..", "a..b", "-a", "a\n", "a\u200bb", "x" * 65, "a/b", "e\u0301a", "a\u202e"])
def test_inp_4_names_are_from_an_allow_list(name):
    with pytest.raises(ApiError) as caught:
        check_username(name)
    assert caught.value.code == "invalid_value"
    with pytest.raises(ApiError):
        check_key_name(name if name not in ("a b", "a..b", "x" * 65, "a/b") else "x" * 129)


def test_names_have_one_key():
    assert name_key("\u212bngstr\u00f6m") == name_key("\u00c5NGSTR\u00d6M")
    assert skeleton("Admin") == skeleton("\u0430dm\u0456n") == skeleton("admln")
    assert skeleton("anna") != skeleton("hanna")
    check_username("a")
    check_username("svc.build-7@ci")
    check_key_name("laptop (home) #2)")


def test_aut_3_sec_080_the_last_admin_is_protected(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            accounts = host.worker().accounts
            admin = await accounts.bootstrap(PASSWORD)
            by = actor(admin)
            await refused(accounts.update_account(by, admin.id, role="user"), "conflict")
            await refused(accounts.update_account(by, admin.id, disabled=True), "conflict")
            await refused(accounts.delete_account(by, admin.id), "conflict")
            second = await accounts.create_account(by, username="second", password=PASSWORD, role="admin")
            await accounts.update_account(by, second.id, disabled=True)
            await refused(accounts.delete_account(by, admin.id), "conflict")  # a disabled admin is none
            await accounts.update_account(by, second.id, disabled=False)
            # Both at once: exactly one of two admins goes.
            results = await asyncio.gather(
                accounts.delete_account(by, admin.id), accounts.delete_account(by, second.id), return_exceptions=True
            )
            assert sum(isinstance(result, ApiError) for result in results) == 1
            assert len(await accounts.list_accounts()) == 1

    run(main())


def test_aut_3_nobody_grants_or_takes_over_more_than_they_have(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            accounts = host.worker().accounts
            admin = await accounts.bootstrap(PASSWORD)
            ann = await accounts.create_account(actor(admin), username="ann", password=PASSWORD, role="user")
            manager = Actor(id=ann.id, actor_type="key", permissions=ROLES["user"] | {"manage_users"})
            await refused(
                accounts.create_account(manager, username="eve", password=PASSWORD, role="admin"),
                "insufficient_permissions",
            )
            await refused(accounts.update_account(manager, ann.id, role="admin"), "insufficient_permissions")
            await refused(accounts.set_password(manager, admin.id, PASSWORD + "x"), "insufficient_permissions")
            await refused(accounts.delete_account(manager, admin.id), "insufficient_permissions")
            assert (await accounts.create_account(manager, username="bob", password=PASSWORD, role="user")).role == "user"
            await refused(accounts.update_account(actor(admin), ann.id, role="root"), "invalid_value")
            await refused(accounts.update_account(actor(admin), "acct_none", role="user"), "not_found")
            await refused(
                accounts.update_account(actor(admin), ann.id, limits=KeyLimits(max_requests_per_minute=0)), "invalid_value"
            )

    run(main())


def test_aud_3_sec_141_what_cannot_be_recorded_does_not_happen(store_url, tmp_path, monkeypatch):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            admin = await worker.accounts.bootstrap(PASSWORD)
            ann = await make_user(worker)
            key, _ = await make_key(worker, ann)
            before = await snapshot(worker)

            def fail(*_):
                raise audit.AuditFailed("no space")

            monkeypatch.setattr(host.audit._writer, "commit", fail)
            by = actor(admin)
            actions = [
                worker.accounts.create_account(by, username="bob", password=PASSWORD, role="user"),
                worker.accounts.update_account(by, ann.id, role="service"),
                worker.accounts.update_account(by, ann.id, disabled=True),
                worker.accounts.set_password(by, ann.id, PASSWORD + "x"),
                worker.accounts.delete_account(by, ann.id),
                worker.accounts.create_key(by, ann.id, KeySpec(name="n")),
                worker.accounts.revoke_key(by, key.id, owner_id=None),
                worker.accounts.end_all_sessions(by, ann.id),
                worker.login.login("ann", PASSWORD, block="10.0.0.1"),
            ]
            for action in actions:
                assert (await refused(action, "audit_unavailable")).status == 503
            assert host.audit.is_failing
            assert await snapshot(worker) == before
            monkeypatch.undo()
            await worker.accounts.delete_account(by, ann.id)

    async def snapshot(worker):
        async with worker.store.read() as connection:
            rows = [
                (await connection.execute(text(query))).all()
                for query in ("SELECT * FROM accounts ORDER BY id", "SELECT * FROM api_keys ORDER BY id")
            ]
        return [[tuple(row) for row in table] for table in rows]

    run(main())


def test_aud_2_each_change_is_recorded_with_its_maker(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            admin = await worker.accounts.bootstrap(PASSWORD)
            by = actor(admin)
            ann = await worker.accounts.create_account(by, username="ann", password=PASSWORD, role="user")
            await worker.accounts.update_account(by, ann.id, disabled=True)
            await worker.accounts.set_password(by, ann.id, PASSWORD + "x")
            key, _ = await make_key(worker, ann)
            await worker.accounts.revoke_key(by, key.id, owner_id=None)
            await worker.accounts.delete_account(by, ann.id)
            await refused(worker.accounts.delete_account(by, ann.id), "not_found")
            found = await host.records()
            assert [(r["event"], r["target"], r["result"]) for r in found[1:]] == [
                ("user.create", found[1]["target"], "success"),
                ("user.update", ann.id, "success"),
                ("user.password", ann.id, "success"),
                ("key.create", key.id, "success"),
                ("key.revoke", key.id, "success"),
                ("user.delete", ann.id, "success"),
                ("user.delete", ann.id, "failure"),
            ]
            assert {(r["actor"], r["ip"], r["request_id"]) for r in found[2:4]} == {(admin.id, "10.0.0.1", "r1")}
            assert host.verify().status == 0

    run(main())


# ---------------------------------------------------------------- keys


def test_key_2_sec_054_sec_055_the_secret_is_shown_once_and_only_hashed(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            ann = await make_user(worker)
            _, secret = await make_key(worker, ann)
            (listed,) = await worker.accounts.list_keys(ann.id)
            shown = msgspec.json.encode({**msgspec.structs.asdict(listed), "digest": ""})
            assert listed.last_four == secret[-4:]
            hidden = secret.split("_")[2][:-4].encode()
            assert hidden not in shown
            async with worker.store.read() as connection:
                rows = (await connection.execute(text("SELECT * FROM api_keys"))).all()
            await host.records()
        return hidden, repr(rows)

    hidden, rows = run(main())
    assert hidden.decode() not in rows
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert hidden not in path.read_bytes(), path
    if (tmp_path / "inferno.db").exists():
        with sqlite3.connect(tmp_path / "inferno.db") as backup:
            assert hidden.decode() not in "\n".join(backup.iterdump())
        backup.close()


def test_key_3_sec_060_lifetimes(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker(policy=KeyPolicy(default_days=7))
            ann = await make_user(worker)
            key, _ = await make_key(worker, ann)
            assert key.expires_at == host.clock.now + 7 * DAY
            key, _ = await make_key(worker, ann, expires_in_days=1)
            assert key.expires_at == host.clock.now + DAY
            for days in (0, -1, 200 * 365, 3651):
                await refused(make_key(worker, ann, expires_in_days=days), "invalid_value")

    run(main())


def test_key_4_sec_065_permissions_are_a_subset_of_maker_and_owner(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            admin = await worker.accounts.bootstrap(PASSWORD)
            ann = await make_user(worker)
            for permission in set(PERMISSIONS) - ROLES["user"]:
                await refused(make_key(worker, ann, permissions=[permission]), "insufficient_permissions")
            await refused(make_key(worker, ann, permissions=["admin"]), "invalid_value")
            await refused(make_key(worker, ann, permissions=["read_models "]), "invalid_value")
            # An admin cannot give ann's key what ann lacks either.
            spec = KeySpec(name="n", permissions=["manage_users"])
            await refused(worker.accounts.create_key(actor(admin), ann.id, spec), "insufficient_permissions")
            key, _ = await make_key(worker, ann)
            assert msgspec.json.decode(key.permissions) == ["read_models", "run_inference", "use_streaming"]
            weak = Actor(id=ann.id, actor_type="key", permissions=frozenset(("read_models",)))
            key, _ = await worker.accounts.create_key(weak, ann.id, KeySpec(name="n"))
            assert msgspec.json.decode(key.permissions) == ["read_models"]

    run(main())


def test_key_4_limits_stay_below_the_operators(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            caps = KeyLimits(max_requests_per_minute=60, max_input_length=10_000)
            worker = host.worker(policy=KeyPolicy(caps=caps))
            admin = await worker.accounts.bootstrap(PASSWORD)
            ann = await make_user(worker)
            await refused(make_key(worker, ann, limits=KeyLimits(max_requests_per_minute=61)), "invalid_value")
            await refused(make_key(worker, ann, limits=KeyLimits(max_requests_per_minute=0)), "invalid_value")
            await refused(make_key(worker, ann, limits=KeyLimits(max_input_length=10_001)), "invalid_value")
            await refused(make_key(worker, ann, redact_profile="secrets"), "insufficient_permissions")
            await refused(make_key(worker, admin, redact_profile="none"), "invalid_value")
            spec = KeySpec(name="n", limits=KeyLimits(max_input_length=1 << 20), redact_profile="secrets")
            key, _ = await worker.accounts.create_key(actor(admin), ann.id, spec)
            assert key.redact_profile == "secrets"

    run(main())


def test_a_user_has_at_most_so_many_keys_however_they_race(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            workers = [host.worker(policy=KeyPolicy(max_per_account=5)) for _ in range(2)]
            ann = await make_user(workers[0])
            results = await asyncio.gather(
                *(make_key(workers[i % 2], ann, f"k{i}") for i in range(12)), return_exceptions=True
            )
            assert sum(isinstance(result, tuple) for result in results) == 5
            assert {result.code for result in results if not isinstance(result, tuple)} == {"conflict"}
            (first, *_) = await workers[0].accounts.list_keys(ann.id)
            await workers[1].accounts.revoke_key(actor(ann), first.id, owner_id=ann.id)
            await make_key(workers[0], ann, "again")

    run(main())


def test_aut_3_sec_067_a_foreign_key_looks_missing(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            ann, bob = await make_user(worker), await make_user(worker, "bob")
            key, _ = await make_key(worker, ann)
            foreign = await refused(worker.accounts.revoke_key(actor(bob), key.id, owner_id=bob.id), "not_found")
            missing = await refused(worker.accounts.revoke_key(actor(bob), "zzzzzzzzzzzz", owner_id=bob.id), "not_found")
            odd = await refused(worker.accounts.revoke_key(actor(bob), "' OR 1=1 --", owner_id=bob.id), "not_found")
            assert foreign.body() == missing.body() == odd.body()
            assert await worker.accounts.list_keys(bob.id) == []

    run(main())


def test_keys_turned_off_are_not_made(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker(policy=KeyPolicy(enabled=False))
            ann = await make_user(worker)
            await refused(make_key(worker, ann), "insufficient_permissions")

    run(main())


def test_aud_2_expiry_is_recorded_once(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            ann = await make_user(worker)
            key, _ = await make_key(worker, ann, expires_in_days=1)
            assert await worker.accounts.record_expired_keys() == 0
            host.clock.now += DAY
            assert await worker.accounts.record_expired_keys() == 1
            assert await worker.accounts.record_expired_keys() == 0
            assert [r["target"] for r in await host.records("key.expire")] == [key.id]

    run(main())


def test_a_change_runs_to_its_end_when_its_caller_goes_away(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            ann = await make_user(worker)
            key, _ = await make_key(worker, ann)
            task = asyncio.create_task(worker.accounts.revoke_key(SERVER, key.id, owner_id=None))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with asyncio.timeout(60):
                while await worker.accounts.list_keys(ann.id):
                    await asyncio.sleep(0.01)
            assert len(await host.records("key.revoke")) == 1

    run(main())
