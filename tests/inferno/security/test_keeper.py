"""Upkeep: other hosts' changes, a crash between commit and bump, pruning."""

import pytest
from inferno_native.epochs import EpochTable

from inferno.errors import ApiError
from inferno.security import keeper as keeper_module
from inferno.security.accounts import SERVER, account_identity
from inferno.security.keeper import Keeper
from inferno.storage import identities
from inferno.storage.store import Store
from tests.identity_kit import actor, bearer, host_on, make_key, make_user, run, x_api_key


def test_contract_7_4_changes_of_another_host_arrive(store_url, tmp_path):
    """Two hosts, one database, a shared table each: a revocation on one ends the cached key on the other."""

    async def main():
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        async with host_on(store_url, tmp_path / "a") as here, host_on(store_url, tmp_path / "b") as there:
            one, two = here.worker(), there.worker()
            keeper = Keeper(two.store, there.table, two.accounts)
            ann = await make_user(one)
            key, secret = await make_key(one, ann)
            await keeper.follow()
            await two.auth.authenticate(x_api_key(secret), b"", "10.0.0.1")
            await keeper.follow()
            assert two.auth.cached(x_api_key(secret), b"", "10.0.0.1") is not None
            await one.accounts.revoke_key(actor(ann), key.id, owner_id=ann.id)
            assert two.auth.cached(x_api_key(secret), b"", "10.0.0.1") is not None  # not heard of yet
            await keeper.follow()
            with pytest.raises(ApiError):
                await two.auth.authenticate(x_api_key(secret), b"", "10.0.0.1")
        assert keeper_module.FOLLOW_SECONDS < 1.0

    run(main())


def test_a_process_that_dies_before_its_bump_is_made_good(store_url, tmp_path, monkeypatch):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker, dying = host.worker(), host.worker()
            keeper = Keeper(worker.store, host.table, worker.accounts)
            ann = await make_user(worker)
            _, secret = await make_key(worker, ann)
            await keeper.follow()
            await worker.auth.authenticate(x_api_key(secret), b"", "10.0.0.1")
            lonely = EpochTable.create()  # its bumps reach nobody
            monkeypatch.setattr(dying.accounts, "_epochs", lonely)
            await dying.accounts.update_account(SERVER, ann.id, disabled=True)
            assert worker.auth.cached(x_api_key(secret), b"", "10.0.0.1") is not None
            await keeper.follow()
            assert worker.auth.cached(x_api_key(secret), b"", "10.0.0.1") is None
            lonely.close()

    run(main())


def test_many_changes_at_once_make_everything_stale(store_url, tmp_path, monkeypatch):
    monkeypatch.setattr(keeper_module, "MAX_CHANGES", 3)

    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            keeper = Keeper(worker.store, host.table, worker.accounts)
            await keeper.follow()
            before = host.table.read(b"u:nobody")
            async with worker.store.write() as connection:
                for i in range(5):
                    await identities.note_change(connection, account_identity(f"x{i}"), 1)
            await keeper.follow()
            assert host.table.read(b"u:nobody") == before + 1
            await keeper.follow()
            assert host.table.read(b"u:nobody") == before + 1

    run(main())


def test_jwt_10_pruning(store_url, tmp_path):
    async def main():
        async with host_on(store_url, tmp_path) as host:
            worker = host.worker()
            keeper = Keeper(worker.store, host.table, worker.accounts, clock=host.clock)
            ann = await make_user(worker)
            await make_key(worker, ann, expires_in_days=1)
            found = await worker.login.login("ann", "plum-orbit-Yonder7", block="10.0.0.1")
            principal = await worker.auth.authenticate(bearer(found.token), b"", "10.0.0.1")
            await worker.login.logout(principal, actor(ann))
            await keeper.prune()
            async with worker.store.read() as connection:
                assert await identities.is_session_revoked(connection, principal.session_id)
            host.clock.now += 86400 + 31
            await keeper.prune()
            async with worker.store.read() as connection:
                assert not await identities.is_session_revoked(connection, principal.session_id)
            assert len(await host.records("key.expire")) == 1

    run(main())


def test_a_lost_database_is_waited_for(tmp_path):
    async def main():
        async with host_on(f"sqlite:///{tmp_path}/inferno.db", tmp_path) as host:
            lost = Store(f"sqlite:///{tmp_path}/lost/inferno.db")
            keeper = Keeper(lost, host.table, host.worker().accounts)
            with pytest.raises(ApiError):
                await keeper.follow()
            await lost.close()

    run(main())
