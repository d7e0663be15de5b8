"""Who is next: deficit round robin between principals, priority and age inside one, bounds."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferno.engine.fairqueue import FairQueue, QueueFull

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


class Item:
    def __init__(self, name: str, owner: bytes = A) -> None:
        self.name = name
        self.owner = owner


def drain(queue: FairQueue[Item]) -> list[str]:
    names = []
    while (item := queue.pop()) is not None:
        names.append(item.name)
    return names


def test_one_request_waits_no_longer_than_one_turn_of_each() -> None:
    queue: FairQueue[Item] = FairQueue(100, 100)
    for i in range(64):
        queue.push(Item(f"a{i}"), A, cost=300)
    assert queue.pop() is not None
    queue.push(Item("b"), B, cost=300)
    order = drain(queue)
    assert order.index("b") <= 2  # the rest of A's turn (512 tokens) at most


def test_shares_follow_cost_and_weight() -> None:
    queue: FairQueue[Item] = FairQueue(10_000, 10_000)
    for i in range(400):
        queue.push(Item(f"a{i}", A), A, cost=100)
        queue.push(Item(f"b{i}", B), B, cost=400)
        queue.push(Item(f"c{i}", C), C, cost=100, weight=2.0)
    tokens: Counter[bytes] = Counter()
    for _ in range(300):
        item = queue.pop()
        assert item is not None
        tokens[item.owner] += 400 if item.owner == B else 100
    assert tokens[A] == pytest.approx(tokens[B], rel=0.15)
    assert tokens[C] == pytest.approx(2 * tokens[A], rel=0.15)


def test_priority_then_age_inside_one_principal_only() -> None:
    queue: FairQueue[Item] = FairQueue(100, 100)
    queue.push(Item("low"), A, cost=1, priority=-5)
    queue.push(Item("first"), A, cost=1)
    queue.push(Item("second"), A, cost=1)
    queue.push(Item("high"), A, cost=1, priority=9)
    queue.push(Item("other"), B, cost=1, priority=-100)
    order = drain(queue)
    assert [name for name in order if name != "other"] == ["high", "first", "second", "low"]


def test_bounds_tell_whose_share_is_full() -> None:
    queue: FairQueue[Item] = FairQueue(3, 2)
    kept = [Item("1"), Item("2")]
    for item in kept:
        queue.push(item, A, cost=1)
    with pytest.raises(QueueFull) as full:
        queue.push(Item("3"), A, cost=1)
    assert (full.value.scope, full.value.limit) == ("principal", 2)
    queue.push(Item("b"), B, cost=1)
    with pytest.raises(QueueFull) as full:
        queue.push(Item("c"), C, cost=1)
    assert (full.value.scope, full.value.limit) == ("total", 3)
    assert queue.remove(kept[0])
    assert not queue.remove(kept[0])
    queue.push(Item("c"), C, cost=1)
    assert sorted(drain(queue)) == ["2", "b", "c"]


def test_bytes_are_bounded_like_places() -> None:
    queue: FairQueue[Item] = FairQueue(4, 2, place_bytes=100)
    queue.push(Item("huge"), A, cost=1, size_bytes=10_000)  # nobody waits: it may go to a slot at once
    with pytest.raises(QueueFull) as full:
        queue.push(Item("b"), B, cost=1, size_bytes=1)
    assert full.value.scope == "total"
    assert drain(queue) == ["huge"]
    assert queue.size_bytes == 0
    first = Item("a1")
    queue.push(first, A, cost=1, size_bytes=150)
    with pytest.raises(QueueFull) as full:
        queue.push(Item("a2"), A, cost=1, size_bytes=51)
    assert (full.value.scope, full.value.limit) == ("principal", 2)
    queue.push(Item("a2"), A, cost=1, size_bytes=50)
    queue.push(Item("b1"), B, cost=1, size_bytes=200)
    with pytest.raises(QueueFull) as full:
        queue.push(Item("c1"), C, cost=1, size_bytes=1)
    assert full.value.scope == "total"
    assert queue.remove(first)
    queue.push(Item("c1"), C, cost=1, size_bytes=150)
    assert queue.size_bytes == 400
    assert sorted(drain(queue)) == ["a2", "b1", "c1"]
    assert queue.size_bytes == 0


def test_a_tiny_weight_and_a_huge_cost_end() -> None:
    queue: FairQueue[Item] = FairQueue(10, 10)
    queue.push(Item("a"), A, cost=1 << 40, weight=1e-300)
    queue.push(Item("b"), B, cost=1 << 20, weight=1e-300)
    assert drain(queue) == ["b", "a"]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["push", "push", "pop", "remove"]), st.integers(0, 3), st.integers(1, 5000))
    )
)
def test_nothing_is_lost_or_given_twice(actions: list[tuple[str, int, int]]) -> None:
    queue: FairQueue[Item] = FairQueue(10_000, 10_000)
    inside: list[Item] = []
    for action, who, cost in actions:
        if action == "push":
            item = Item(f"{who}")
            queue.push(item, bytes([who]) * 16, cost=cost, weight=0.5 + who)
            inside.append(item)
        elif action == "pop":
            got = queue.pop()
            assert (got is None) == (not inside)
            if got is not None:
                inside.remove(got)
        elif inside:
            assert queue.remove(inside.pop(cost % len(inside)))
        assert len(queue) == len(inside)
    assert len(drain(queue)) == len(inside)
