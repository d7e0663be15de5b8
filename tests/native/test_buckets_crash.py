"""A worker that dies inside the critical section blocks nobody and neither makes nor loses permits (issue 5.6).

A debug build stops itself at numbered points of the section (SIGSTOP), and is killed there (SIGKILL): before the journal
(1), when it is armed (2), between tag and entry (3), between entries (4), before (5) and after (6) the journal is cleared.
The charge has happened if the journal was cleared, and not at all otherwise.
"""

import os
import random
import time

import pytest
from inferno_native import buckets
from inferno_native.buckets import BucketsBusy, BucketsError, BucketTable

from tests.native.buckets_processes import Worker, build_debug

pytestmark = pytest.mark.slow

MINUTE, HOUR = 60_000_000, 3_600_000_000
OWNERS, KEYS, SLOTS = 0, 1, 2
FAMILIES = [(8, (MINUTE, HOUR), False), (8, (MINUTE,), False), (8, (1,), True)]
OWNER, KEY, SLOT = (OWNERS, b"owner", (60, 1000)), (KEYS, b"key", (50,)), (SLOTS, b"owner", (4,))
POINTS = range(1, 7)


@pytest.fixture(scope="module")
def debug_library(tmp_path_factory):
    return build_debug(tmp_path_factory.mktemp("debug"))


@pytest.fixture
def table():
    table = BucketTable.create(FAMILIES, num_owners=8, manual_clock=True)
    yield table
    table.close()


def seen(table):
    """All that another process can tell of the table."""
    return (
        [table.check(*part, 0).states for part in (OWNER, KEY, SLOT)],
        [table.check(OWNERS, b"old %d" % i, (60, 1000), 0).states for i in range(40)],
        [table.num_open_holds(slot) for slot in range(2)],
    )


def prepare_nothing(table, worker):
    pass


def prepare_entries(table, worker):
    table.take((OWNER, KEY), 3)


def prepare_full_table(table, worker):
    """Fill every place, then let all buckets fill up again: the next new key evicts."""
    for i in range(400):
        table.check(OWNERS, b"filler %d" % i, (60, 1000), 30)
    table.set_now_us(2 * HOUR)


def prepare_hold(table, worker):
    assert worker.ask("hold", (KEY, SLOT), 1, 0) == buckets.ADMITTED
    assert worker.ask("hold", (KEY,), 40, 10) == buckets.ADMITTED


CASES = {
    "a new key": (prepare_nothing, ("take", (OWNER,), 1)),
    "a known key": (prepare_entries, ("take", (OWNER,), 1)),
    "two parts": (prepare_entries, ("take", (OWNER, KEY), 2)),
    "an eviction": (prepare_full_table, ("take", (OWNER, KEY), 1)),
    "a hold": (prepare_nothing, ("hold", (KEY, SLOT), 1, 0)),
    "a settlement": (prepare_hold, ("settle", 1, 25)),
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("case", CASES)
def test_kill_9_inside_the_critical_section_leaves_all_or_nothing(table, debug_library, case, point):
    prepare, command = CASES[case]
    # What the command does when nobody dies, on a table that was prepared the same way.
    whole = BucketTable.create(FAMILIES, num_owners=8, manual_clock=True)
    twin = Worker(whole, 0, library=debug_library)
    prepare(whole, twin)
    twin.ask(*command)
    after = seen(whole)
    twin.close()
    whole.close()

    worker = Worker(table, 0, library=debug_library)
    prepare(table, worker)
    before = seen(table)
    assert before != after
    worker.ask("stop_at", point)
    worker.tell(*command)
    worker.wait_until_stopped()
    worker.kill()
    assert seen(table) == (after if point == 6 else before)  # who waited for the dead one would get BucketsBusy
    assert table.statistics(OWNERS)["num_recoveries"] == 1

    # Nothing is left behind: the dead worker's holds are released, a new worker works on.
    num_open = table.num_open_holds(0)
    assert table.release_owner(0, worker.generation) == num_open
    successor = Worker(table, 0, library=debug_library)
    assert successor.ask("hold", (SLOT,), 1, 0) == buckets.ADMITTED
    assert table.check(*SLOT, 0).states[0][3] == 3
    successor.close()


def test_kill_9_wakes_those_who_wait_for_the_lock(table, debug_library):
    victim, waiter = Worker(table, 0, library=debug_library), Worker(table, 1)
    victim.ask("stop_at", 3)
    victim.tell("take", (OWNER,), 1)
    victim.wait_until_stopped()
    waiter.tell("take", (OWNER,), 1)
    waiter.wait_until_blocked()
    victim.kill()
    assert waiter.answer() == buckets.ADMITTED  # and not BucketsBusy after two seconds
    assert table.check(*OWNER, 0).states[0][3] == 59, "the waiter's charge, not the dead one's"
    waiter.close()


def test_a_holder_that_is_stopped_makes_the_store_unavailable_not_stuck(table, debug_library):
    stopped = Worker(table, 0, library=debug_library)
    stopped.ask("stop_at", 2)
    stopped.tell("take", (OWNER,), 1)
    stopped.wait_until_stopped()
    start = time.monotonic()
    with pytest.raises(BucketsBusy):
        table.check(*OWNER)
    assert 1 < time.monotonic() - start < 30
    stopped.go_on()
    assert stopped.answer() == buckets.ADMITTED
    assert table.check(*OWNER).states[0][3] == 58
    stopped.close()


def test_lim_7_a_worker_and_the_supervisor_do_not_settle_the_same_hold_twice(table, debug_library):
    worker, supervisor = Worker(table, 0), Worker(table, 1, library=debug_library)
    assert worker.ask("hold", (KEY,), 20, 0) == buckets.ADMITTED
    table.check(*KEY, 20)
    supervisor.ask("stop_at", 2)
    supervisor.tell("release", 0, worker.generation)
    supervisor.wait_until_stopped()
    worker.tell("settle", 0, 0)  # the hold is still open when it looks first
    worker.wait_until_blocked()
    supervisor.go_on()
    assert (supervisor.answer(), worker.answer()) == (1, False)
    assert table.check(*KEY, 0).states[0][3] == 30
    worker.close()
    supervisor.close()


def test_kill_9_at_any_moment_costs_one_charge_at_most(table):
    """Workers charge as fast as they can and are killed one after the other, wherever they are."""
    num_kills = 40
    rng = random.Random(5)
    count_fd = os.memfd_create("counts", os.MFD_CLOEXEC)
    os.ftruncate(count_fd, 4096)
    part = (OWNERS, b"all", (2**31 - 1, 2**31 - 1))
    for number in range(num_kills):
        worker = Worker(table, number % 8, more_fds=(count_fd,))
        worker.tell("count_into", count_fd, number, (part,))
        counted = 0
        goal = rng.randrange(1, 20_000)
        while counted < goal:
            counted = int.from_bytes(os.pread(count_fd, 8, 8 * number), "little")
            os.sched_yield()
        worker.kill()
    counts = memoryview(os.pread(count_fd, 4096, 0)).cast("Q")
    told = sum(counts)
    os.close(count_fd)
    states = table.check(*part, 0).states
    used = 2**31 - 1 - states[0][3]
    assert told <= used <= told + num_kills
    assert states[0][3] == states[1][3], "both windows or none"


def test_the_release_build_cannot_be_stopped():
    if buckets.DEBUG_BUILD:
        pytest.skip("this is a debug build")
    with pytest.raises(BucketsError, match="debug build"):
        buckets.stop_at(1)
