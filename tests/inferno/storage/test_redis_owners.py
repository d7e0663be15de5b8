"""Holds of a dead worker in a real Valkey: given back by its own server's supervisor, and nobody else's."""

import asyncio
import functools

import pytest
from inferno_native import buckets

from inferno.storage.bucket_store import BucketFamily
from inferno.storage.redis import RedisBuckets
from inferno.storage.redis_owners import RedisOwners, owner_name
from tests.inferno.security.limits_harness import valkey_server

pytestmark = pytest.mark.valkey
FAMILIES = [BucketFamily(10, (1,), counting=True)]
SLOT = ((0, b"k", (1,)),)


@pytest.fixture(scope="module")
def url():
    for server in valkey_server():
        yield f"redis://127.0.0.1:{server.port}/0"


def test_lim_7_slots_of_a_dead_worker_come_back_at_once(url):
    async def run():
        connect = functools.partial(RedisBuckets, breaker_seconds=0)
        ours, other = RedisOwners(url, FAMILIES, connect=connect), RedisOwners(url, FAMILIES, connect=connect)
        worker = RedisBuckets(url, FAMILIES, owner_name(ours.fd, 7), breaker_seconds=0)
        asker = RedisBuckets(url, FAMILIES, "asker", breaker_seconds=0)
        assert (await worker.hold(SLOT, 1)).status == buckets.ADMITTED
        await worker._client.aclose()  # it is gone, and has settled nothing
        other.worker_gone(7)  # of another server: the same number, another name
        await other.released()
        assert (await asker.hold(SLOT, 1)).status == buckets.REFUSED
        ours.worker_gone(7)
        await ours.released()
        assert (await asker.hold(SLOT, 1)).status == buckets.ADMITTED
        worker._open.clear()
        for store in (worker, asker):
            await store.close()
        for owners in (ours, other):
            owners.close()

    asyncio.run(run())


def test_an_unreachable_store_holds_up_nobody(caplog):
    async def run():
        owners = RedisOwners("redis://127.0.0.1:1/0", FAMILIES)
        owners.worker_gone(1)
        await owners.released()
        owners.close()

    asyncio.run(run())
    assert "until their lease ends" in caplog.text
