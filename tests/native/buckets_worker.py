"""A process that shares a bucket table with the test: attaches to a descriptor and obeys lines on stdin.

Run as `python buckets_worker.py FD SLOT GENERATION`. Each line is a Python literal (command, arguments…); each answer
is one line. Knows nothing of what it proves: test_buckets_processes.py and test_buckets_crash.py drive it.
"""

import ast
import mmap
import sys
import time

from inferno_native import buckets
from inferno_native.buckets import BucketTable


def main(fd, slot, generation):
    table = BucketTable.attach(fd)
    table.bind(slot, generation)
    holds = []
    print("ready", flush=True)
    for line in sys.stdin:
        command, *arguments = ast.literal_eval(line)
        print(repr(COMMANDS[command](table, holds, *arguments)), flush=True)


def admit(table, holds, start_at, parts, num_tries):
    """Wait for the common start, then try as fast as possible; the number that was admitted."""
    while time.monotonic() < start_at:
        pass
    return sum(table.take(parts).allowed for _ in range(num_tries))


def cycle(table, holds, start_at, parts, num_rounds):
    """Hold, settle in full, and try to settle again; the numbers (held, settled once, settled twice)."""
    while time.monotonic() < start_at:
        pass
    counts = [0, 0, 0]
    for _ in range(num_rounds):
        outcome = table.hold(parts, 1)
        if outcome.allowed:
            counts[0] += 1
            counts[1] += table.settle(outcome.hold, 0)
            counts[2] += table.settle(outcome.hold, 0)
    return tuple(counts)


def take(table, holds, parts, cost):
    return table.take(parts, cost).status


def hold(table, holds, parts, cost, spent):
    outcome = table.hold(parts, cost, spent)
    holds.append(outcome.hold)
    return outcome.status


def settle(table, holds, number, spent):
    return table.settle(holds[number], spent)


def release(table, holds, slot, generation):
    return table.release_owner(slot, generation)


def stop_at(table, holds, point):
    buckets.stop_at(point)


def count_into(table, holds, count_fd, slot, parts):
    """Charge for ever; the number of admitted charges stands in a shared page, for when this process is killed."""
    page = mmap.mmap(count_fd, 4096)
    counts = memoryview(page).cast("Q")
    while True:
        if table.take(parts).allowed:
            counts[slot] += 1


COMMANDS = {"admit": admit, "cycle": cycle, "take": take, "hold": hold, "settle": settle, "release": release, "stop_at": stop_at,
            "count_into": count_into}  # fmt: skip

if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
