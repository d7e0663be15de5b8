"""storage.redis against a real Valkey: exact like the native table, safe when hosts or the store die (LIM-10)."""

import asyncio
import contextlib
import secrets
import socket
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inferno_native import buckets

from inferno.storage import redis as redis_module
from inferno.storage.bucket_store import BucketFamily, StoreUnavailable
from inferno.storage.redis import LEASE_SECONDS, RedisBuckets
from tests.inferno.security.limits_harness import PATIENCE, valkey_server
from tests.native.reference_buckets import ReferenceBuckets
from tests.ports import free_port

pytestmark = pytest.mark.valkey

MINUTE, HOUR, SECOND = 60_000_000, 3_600_000_000, 1_000_000
REQUESTS, TOKENS, SLOTS = 0, 1, 2
FAMILIES = [BucketFamily(10, (MINUTE, HOUR)), BucketFamily(10, (MINUTE,)), BucketFamily(10, (1,), counting=True)]
STATUS = {buckets.ADMITTED: "admitted", buckets.REFUSED: "refused", buckets.TOO_LARGE: "too large"}


@pytest.fixture(scope="module")
def server():
    yield from valkey_server()


@pytest.fixture(scope="module")
def url(server):
    return f"redis://127.0.0.1:{server.port}/0"


class Clock:
    def __init__(self):
        self.now_us = 1_000_000_000

    def __call__(self):
        return self.now_us


@contextlib.asynccontextmanager
async def hosts(url, count=1, *, clock=None, breaker_seconds=0, is_patient=True):
    """Workers of `count` hosts on one store, in a namespace of their own; a busy machine is no store that is away."""
    prefix = f"test:{{{secrets.token_hex(6)}}}:"
    with mock.patch.multiple(redis_module, **PATIENCE) if is_patient else contextlib.nullcontext():
        stores = [RedisBuckets(url, FAMILIES, f"host {i}", now_us=clock, breaker_seconds=breaker_seconds, prefix=prefix)
                  for i in range(count)]
    try:
        yield stores
    finally:
        for store in stores:
            await store.close()


quotas = st.one_of(st.none(), st.integers(1, 12), st.sampled_from([60, 1000, 65_535, 65_536, buckets.MAX_QUOTA]))
charge = st.tuples(st.just("take"), st.sampled_from([b"a", b"b"]), quotas, quotas, quotas,
                   st.one_of(st.integers(0, 15), st.sampled_from([60_000, 2**31 - 1])))
held = st.tuples(st.just("hold"), st.sampled_from([b"a", b"b"]), st.integers(1, 12), st.integers(1, 12))
settled = st.tuples(st.just("settle"), st.integers(0, 5), st.integers(0, 15))
passing = st.tuples(st.just("wait"), st.one_of(st.integers(0, 100), st.integers(0, 2 * SECOND), st.integers(0, 2 * HOUR)))


@given(st.lists(st.one_of(charge, held, settled, passing), max_size=30))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_sequence_gives_what_the_plain_python_twin_gives(url, steps):
    async def run():
        clock = Clock()
        twin = ReferenceBuckets(list(FAMILIES), now_us=clock.now_us)
        holds = []
        async with hosts(url, clock=clock) as (store,):
            for step in steps:
                match step:
                    case "take", key, minute, hour, tokens, cost:
                        parts = ((REQUESTS, key, (minute, hour)), (TOKENS, key, (tokens,)))
                        outcome = await store.take(parts, cost)
                        expected = twin.take(parts, cost)
                        assert (STATUS[outcome.status], list(outcome.states)) == expected, step
                    case "hold", key, limit, cost:
                        parts = ((TOKENS, key, (limit,)),)
                        outcome = await store.hold(parts, cost)
                        status, states, number = twin.hold(parts, cost)
                        assert (STATUS[outcome.status], list(outcome.states)) == (status, states)
                        if number:
                            holds.append((outcome.hold, number))
                    case "settle", index, spent if index < len(holds):
                        store.settle(holds[index][0], spent)
                        await store.flush()
                        twin.settle(holds[index][1], spent)
                    case "wait", microseconds:
                        clock.now_us += microseconds
                        twin.now_us = clock.now_us

    asyncio.run(run())


def test_lim_2_many_hosts_at_once_admit_exactly_the_limit(url):
    async def run():
        async with hosts(url, 4, clock=Clock()) as stores:
            for run in range(20):
                parts = ((REQUESTS, b"k%d" % run, (60, 1000)),)
                outcomes = await asyncio.gather(*(stores[i % 4].take(parts) for i in range(200)))
                assert sum(outcome.status == buckets.ADMITTED for outcome in outcomes) == 60

    asyncio.run(run())


def test_sec_098_without_an_injected_clock_time_is_the_servers(url):
    async def run():
        async with hosts(url) as (store,):
            quota = 60_000  # a permit each millisecond
            parts = ((TOKENS, b"k", (quota,)),)
            began = asyncio.get_running_loop().time()
            assert (await store.take(parts, quota)).status == buckets.ADMITTED
            outcome = await store.take(parts, quota)
            assert outcome.status == buckets.REFUSED
            while (outcome := await store.take(parts, 20)).status == buckets.REFUSED:
                assert outcome.states[0][5] <= 20_000
            assert asyncio.get_running_loop().time() - began >= 0.015

    asyncio.run(run())


def test_sec_098_a_server_clock_set_back_an_hour_blocks_nobody(url):
    async def run():
        clock = Clock()
        clock.now_us = 10 * HOUR
        async with hosts(url, clock=clock) as (store,):
            parts = ((REQUESTS, b"k", (60, 1000)),)
            for _ in range(60):
                await store.take(parts)
            clock.now_us -= HOUR
            assert (await store.take(parts)).status == buckets.REFUSED
            clock.now_us += SECOND
            assert [(await store.take(parts)).status for _ in range(2)] == [buckets.ADMITTED, buckets.REFUSED]

    asyncio.run(run())


def test_lim_7_a_dead_host_keeps_slots_for_one_lease_and_its_charge_for_as_long_as_any(url):
    async def run():
        clock = Clock()
        async with hosts(url, 2, clock=clock) as (dead, alive):
            slot, tokens = ((SLOTS, b"k", (1,)),), ((TOKENS, b"k", (100,)),)
            await dead.hold(slot, 1)
            await dead.hold(tokens, 100)
            clock.now_us += LEASE_SECONDS * SECOND - 1
            assert (await alive.hold(slot, 1)).status == buckets.REFUSED
            clock.now_us += 1
            assert (await alive.hold(slot, 1)).status == buckets.ADMITTED
            assert (await alive.take(tokens, 0)).states[0][3] == 100, "a minute gave them back"

    asyncio.run(run())


def test_lim_8_a_renewed_slot_outlives_its_lease(url):
    async def run():
        clock = Clock()
        async with hosts(url, 2, clock=clock) as (first, second):
            slot = ((SLOTS, b"k", (1,)),)
            held = await first.hold(slot, 1)
            for _ in range(5):
                clock.now_us += (LEASE_SECONDS - 1) * SECOND
                await first.renew()
                assert (await second.hold(slot, 1)).status == buckets.REFUSED
            first.settle(held.hold, 0)
            await first.flush()
            assert (await second.hold(slot, 1)).status == buckets.ADMITTED

    asyncio.run(run())


def test_lim_7_the_supervisor_settles_for_a_dead_worker_once(url):
    async def run():
        clock = Clock()
        async with hosts(url, 2, clock=clock) as (dead, supervisor):
            slot, tokens = ((SLOTS, b"k", (1,)),), ((TOKENS, b"k", (100,)),)
            await dead.hold(slot, 1)
            held = await dead.hold(tokens, 90, 10)
            dead.note(held.hold, 30)
            await dead.renew()
            assert await supervisor.release_owner("host 0") == 2
            assert await supervisor.release_owner("host 0") == 0
            assert (await supervisor.hold(slot, 1)).status == buckets.ADMITTED
            dead.settle(held.hold, 0)
            await dead.flush()
            assert (await supervisor.take(tokens, 0)).states[0][3] == 70

    asyncio.run(run())


def test_lim_7_settlements_are_sent_by_themselves(url):
    async def run():
        async with hosts(url, clock=Clock()) as (store,):
            slot = ((SLOTS, b"k", (1,)),)
            held = await store.hold(slot, 1)
            store.settle(held.hold, 0)
            async with asyncio.timeout(60):
                while (await store.hold(slot, 1)).status != buckets.ADMITTED:
                    pass

    asyncio.run(run())


def test_valkeys_own_scheme_is_understood(url):
    async def run():
        async with hosts(url.replace("redis://", "valkey://")) as (store,):
            assert (await store.take(((REQUESTS, b"k", (60, 1000)),))).states[0][3] == 59

    asyncio.run(run())


def test_a_server_that_forgot_the_scripts_gets_them_again(url, server):
    async def run():
        async with hosts(url, clock=Clock()) as (store,):
            parts = ((REQUESTS, b"k", (60, 1000)),)
            await store.take(parts)
            await store._client.script_flush()
            assert (await store.take(parts)).states[0][3] == 58

    asyncio.run(run())


def test_keys_hold_no_names_and_expire(url):
    async def run():
        async with hosts(url) as (store,):
            await store.take(((REQUESTS, b"user-alice", (60, 1000)),))
            await store.hold(((SLOTS, b"user-alice", (2,)),), 1)
            names = [name async for name in store._client.scan_iter(match=store._prefix + "*")]
            assert len(names) == 4
            assert not any(b"alice" in name for name in names)
            for name in names:
                assert 0 < await store._client.pttl(name) <= 3_700_000

    asyncio.run(run())


def test_lim_10_a_store_that_does_not_answer_is_unavailable_and_not_waited_for_twice():
    async def run():
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
            async with hosts(url, breaker_seconds=60, is_patient=False) as (store,):
                loop = asyncio.get_running_loop()
                began = loop.time()
                with pytest.raises(StoreUnavailable):
                    await store.take(((REQUESTS, b"k", (60, 1000)),))
                assert loop.time() - began < 30
                began = loop.time()
                for _ in range(100):
                    with pytest.raises(StoreUnavailable, match="a moment ago"):
                        await store.take(((REQUESTS, b"k", (60, 1000)),))
                assert loop.time() - began < 30  # a wait for each would be minutes

    asyncio.run(run())


class Cable:
    """A line to the store that can be cut and mended."""

    def __init__(self, target_port):
        self.target_port = target_port
        self.port = free_port()  # nobody takes it while the line is cut
        self.writers = []
        self.tasks = set()
        self.num_messages = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def mend(self):
        self.server = await asyncio.start_server(self._connect, "127.0.0.1", self.port)

    async def cut(self):
        self.server.close()
        for writer in self.writers:
            writer.close()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.writers.clear()

    async def _connect(self, reader, writer):
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        self.writers += [writer, their_writer]
        for source, target in ((reader, their_writer), (their_reader, writer)):
            task = asyncio.create_task(self._pump(source, target, is_answer=source is their_reader))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _pump(self, source, target, is_answer):
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if is_answer:
                    await self.answers.wait()
                self.num_messages += 1
                target.write(data)
        target.close()


def test_lim_7_a_slot_whose_taker_was_cancelled_comes_back(server, url):
    async def run():
        cable = Cable(server.port)
        await cable.mend()
        slot = ((SLOTS, b"k", (1,)),)
        async with hosts(f"redis://127.0.0.1:{cable.port}/0", clock=Clock()) as (store,):
            other = RedisBuckets(url, FAMILIES, "other", now_us=Clock(), prefix=store._prefix)
            await store.take(slot, 0)
            cable.answers.clear()
            task = asyncio.create_task(store.hold(slot, 1))
            async with asyncio.timeout(60):
                while (await other.take(slot, 0)).states[0][3] == 1:
                    pass
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                cable.answers.set()
                while (await other.take(slot, 0)).states[0][3] == 0:
                    pass
            await other.close()
        await cable.cut()

    asyncio.run(run())


def test_a_charge_is_one_round_trip(server):
    async def run():
        cable = Cable(server.port)
        await cable.mend()
        async with hosts(f"redis://127.0.0.1:{cable.port}/0", clock=Clock()) as (store,):
            parts = ((REQUESTS, b"k", (60, 1000)), (TOKENS, b"k", (None,)))
            await store.take(parts)  # the first one connects and brings the script
            before = cable.num_messages
            for _ in range(20):
                await store.take(parts)
            assert cable.num_messages - before == 40
        await cable.cut()

    asyncio.run(run())


def test_lim_7_lim_10_settlements_wait_until_the_store_is_back(server):
    async def run():
        cable = Cable(server.port)
        await cable.mend()
        tokens = ((TOKENS, b"k", (100,)),)
        async with hosts(f"redis://127.0.0.1:{cable.port}/0", clock=Clock()) as (store,):
            held = await store.hold(tokens, 100)
            await cable.cut()
            store.settle(held.hold, 10)
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    await store.flush()
                with pytest.raises(StoreUnavailable):
                    await store.take(tokens)
            await cable.mend()
            await store.flush()
            assert (await store.take(tokens, 0)).states[0][3] == 90
        await cable.cut()

    asyncio.run(run())
