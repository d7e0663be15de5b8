"""Connections are counted over all workers exactly, however the kernel spreads them."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from inferno.cli.server_parts import BucketsTable
from inferno.security.connection_limits import (
    CONNECTION_FAMILIES,
    MAX_HOLDS,
    ConnectionCounts,
    attach_counts,
    holds_for,
)

WORKERS = 4
TOTAL, PER_SOURCE = 30, 12


@pytest.fixture
def table() -> Iterator[BucketsTable]:
    made = BucketsTable(WORKERS, CONNECTION_FAMILIES, holds_for(TOTAL))
    yield made
    made.close()


def worker_of(table: BucketsTable, number: int, listener: str = "main") -> ConnectionCounts:
    attached = attach_counts(table.fd, *table.worker_started(number))
    return ConnectionCounts(attached, listener, max_connections=TOTAL, max_connections_per_ip=PER_SOURCE)


@pytest.mark.parametrize("seed", range(5))
def test_lim_1_the_cap_of_a_source_is_exact_whichever_worker_takes_the_connection(table: BucketsTable, seed: int) -> None:
    rng = random.Random(seed)
    workers = [worker_of(table, number) for number in range(WORKERS)]
    lopsided = [workers[0]] * 6 + workers
    taken = [(worker, worker.take("192.0.2.1")) for worker in rng.choices(lopsided, k=40)]
    held = [(worker, hold) for worker, hold in taken if isinstance(hold, int)]
    assert len(held) == PER_SOURCE
    assert {hold for _, hold in taken if isinstance(hold, str)} == {"rate_limit_exceeded"}
    assert isinstance(workers[1].take("192.0.2.2"), int)
    worker, hold = held.pop()
    worker.give_back(hold)
    worker.give_back(hold)  # a second time counts nothing
    assert isinstance(rng.choice(workers).take("192.0.2.1"), int)
    assert rng.choice(workers).take("192.0.2.1") == "rate_limit_exceeded"


def test_lim_1_the_total_is_exact_and_counts_trusted_proxies_too(table: BucketsTable) -> None:
    workers = [worker_of(table, number) for number in range(2)]
    assert all(isinstance(workers[0].take(f"192.0.2.{n}"), int) for n in range(10))
    assert all(isinstance(workers[n % 2].take(None), int) for n in range(TOTAL - 10))
    assert workers[1].take(None) == "overloaded"
    assert workers[0].take("192.0.2.99") == "overloaded"


def test_the_operators_listener_has_room_of_its_own(table: BucketsTable) -> None:
    main = worker_of(table, 0)
    for _ in range(TOTAL):
        main.take(None)
    assert main.take(None) == "overloaded"
    operators = worker_of(table, 1, "admin")
    assert isinstance(operators.take("192.0.2.1"), int)


def test_lim_2_a_killed_workers_connections_do_not_count_any_more(table: BucketsTable) -> None:
    dead, alive = worker_of(table, 0), worker_of(table, 1)
    assert all(isinstance(dead.take("2001:db8::/64"), int) for _ in range(PER_SOURCE))
    assert alive.take("2001:db8::/64") == "rate_limit_exceeded"
    table.worker_gone(0)
    assert all(isinstance(alive.take("2001:db8::/64"), int) for _ in range(PER_SOURCE))
    assert alive.take("2001:db8::/64") == "rate_limit_exceeded"


def test_the_table_has_room_for_what_is_configured() -> None:
    assert holds_for(4096) > 4096
    assert holds_for(1_000_000) == MAX_HOLDS
