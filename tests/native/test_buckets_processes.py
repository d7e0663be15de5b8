"""One bucket table, several processes: exactly the allowed number passes, whoever asks (LIM-2)."""

import time

import pytest
from inferno_native.buckets import BucketTable

from tests.native.buckets_processes import Worker

MINUTE, HOUR = 60_000_000, 3_600_000_000
OWNERS, KEYS, SLOTS = 0, 1, 2
FAMILIES = [(1000, (MINUTE, HOUR), False), (1000, (MINUTE,), False), (1000, (1,), True)]
NUM_RUNS = 100


@pytest.fixture(params=[1, 4], ids=["one worker", "four workers"])
def shared(request):
    table = BucketTable.create(FAMILIES, num_owners=8, manual_clock=True)
    workers = [Worker(table, slot) for slot in range(request.param)]
    yield table, workers
    for worker in workers:
        worker.close()
    table.close()


def together(workers, command, *arguments):
    start_at = time.monotonic() + 0.001
    for worker in workers:
        worker.tell(command, start_at, *arguments)
    return [worker.answer() for worker in workers]


def test_lim_2_sec_085_all_workers_together_admit_exactly_the_limit_100_times(shared):
    _table, workers = shared
    shares = []
    for run in range(NUM_RUNS):
        parts = ((OWNERS, b"owner %d" % run, (60, 1000)),)
        shares.append(together(workers, "admit", parts, 600))
    assert [sum(share) for share in shares] == [60] * NUM_RUNS
    if len(workers) > 1:
        assert sum(min(share) > 0 for share in shares) or len({share.index(max(share)) for share in shares}) > 1


def test_lim_2_owner_and_key_together_100_times(shared):
    table, workers = shared
    for run in range(NUM_RUNS):
        owner, key = (OWNERS, b"owner %d" % run, (60, 1000)), (KEYS, b"key %d" % run, (41,))
        assert sum(together(workers, "admit", (owner, key), 300)) == 41
        assert [state[3] for state in table.take((owner, key), 0).states] == [19, 959, 0]


def test_lim_2_many_permits_under_contention(shared):
    _table, workers = shared
    num_tries = 200_000 // len(workers)
    assert sum(together(workers, "admit", ((OWNERS, b"k", (150_001, 10**6)),), num_tries)) == 150_001


def test_lim_7_lim_8_holds_of_all_workers_are_settled_once_each(shared):
    table, workers = shared
    parts = ((SLOTS, b"k", (2,)),)
    counts = together(workers, "cycle", parts, 20_000)
    assert all(held == settled and twice == 0 for held, settled, twice in counts)
    assert table.check(SLOTS, b"k", (2,), 0).states[0][3] == 2
    assert [table.num_open_holds(slot) for slot in range(len(workers))] == [0] * len(workers)


def test_lim_2_on_the_real_clock_the_limit_and_the_refill_pass_and_no_more():
    table = BucketTable.create(FAMILIES, num_owners=8)
    workers = [Worker(table, slot) for slot in range(4)]
    quota = 60_000  # a permit each millisecond
    began = time.monotonic()
    first = table.now_us
    passed = sum(together(workers, "admit", ((OWNERS, b"k", (quota, 10**6)),), 100_000))
    last = table.now_us
    ended = time.monotonic()
    assert quota <= passed <= quota + (last - first) * quota // MINUTE + 1
    assert (last - first) / 1e6 <= ended - began + 1e-3
    for worker in workers:
        worker.close()
    table.close()
