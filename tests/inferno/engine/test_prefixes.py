"""The prefix store: exact tokens, one principal, a bound in bytes."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferno.engine.prefixes import PUBLIC, PrefixStore

ALICE, BOB = (b"a" * 16, b""), (b"b" * 16, b"")


def ids(*numbers: int) -> array[int]:
    return array("i", numbers)


def span(count: int, start: int = 0) -> array[int]:
    return array("i", range(start, start + count))


def store(size: int = 1 << 20, *, whole: bool = False) -> PrefixStore:
    return PrefixStore(size, 4, only_whole=whole)


def test_the_longest_common_boundary_is_found() -> None:
    kept = store()
    kept.add(ALICE, span(12), b"state")
    hit = kept.find(ALICE, array("i", [*range(10), 99, 98, 97]), 12)
    assert hit is not None
    assert (hit.num_tokens, hit.state) == (8, b"state")
    assert kept.find(ALICE, span(40), 12) == (12, b"state")
    assert kept.find(ALICE, span(40), 11) == (8, b"state")
    assert kept.find(ALICE, span(40), 3) is None
    assert kept.find(ALICE, span(40, 1), 40) is None


def test_whole_states_are_found_at_their_end_only() -> None:
    kept = store(whole=True)
    kept.add(ALICE, span(12), b"state")
    assert kept.find(ALICE, span(40), 11) is None
    assert kept.find(ALICE, span(40), 40) == (12, b"state")


def test_nothing_crosses_principals_or_salts() -> None:
    """sec_176."""
    kept = store()
    kept.add(ALICE, span(8), b"hers")
    assert kept.find(BOB, span(20), 20) is None
    assert kept.find((ALICE[0], b"salt"), span(20), 20) is None
    kept.add(PUBLIC, span(4), b"all")
    assert kept.find(BOB, span(20), 20) == (4, b"all")
    assert kept.find(ALICE, span(20), 20) == (8, b"hers")


def test_clear_takes_one_principal_or_all_but_the_public() -> None:
    kept = store()
    for place in (ALICE, (ALICE[0], b"salt"), BOB, PUBLIC):
        kept.add(place, span(8), b"x" * 100)
    assert kept.clear(ALICE[0]) == 2
    assert kept.find(BOB, span(8), 8) is not None
    assert kept.clear() == 1
    assert kept.num_entries == 1
    assert kept.find(BOB, span(8), 8) is not None  # the public one


def test_least_recently_used_goes_first_and_the_bound_holds() -> None:
    kept = store(4000)
    for number in range(5):
        kept.add(ALICE, span(4, number * 100), bytes(300))
        assert kept.size_bytes <= 4000
    assert kept.find(ALICE, span(4, 100), 4) is not None
    before = kept.num_entries
    while kept.num_entries >= before:
        before = kept.num_entries
        kept.add(ALICE, span(4, 1000 + 10 * before + len(kept._by_key)), bytes(300))
        if kept.find(ALICE, span(4, 200), 4) is None:
            break
        kept.find(ALICE, span(4, 100), 4)
    assert kept.size_bytes <= 4000
    assert not kept.add(ALICE, span(4), bytes(5000))


def test_public_prefixes_make_no_room() -> None:
    kept = store(3000)
    assert kept.add(PUBLIC, span(4), bytes(1000))
    for number in range(5):
        assert kept.add(ALICE, span(4, 100 + number * 10), bytes(600))
    assert kept.find(BOB, span(4), 4) is not None
    before = kept.num_entries
    assert not kept.add(ALICE, span(4, 500), bytes(2000))  # would fit, were it not for the public one
    assert kept.num_entries == before


def test_a_longer_state_replaces_the_shorter_one_it_contains() -> None:
    kept = store()
    kept.add(ALICE, span(8), b"short")
    kept.add(ALICE, span(16), b"long")
    assert kept.num_entries == 1
    assert kept.find(ALICE, span(8), 8) == (8, b"long")
    other = array("i", [*range(8), 77, 78, 79, 80])
    kept.add(ALICE, other, b"branch")
    assert kept.num_entries == 2
    assert kept.find(ALICE, span(16), 16) == (16, b"long")
    assert kept.find(ALICE, other, 12) == (12, b"branch")


def test_off_means_off() -> None:
    kept = store(0)
    assert not kept.is_on
    assert not kept.add(ALICE, span(4), b"")
    assert kept.find(ALICE, span(4), 4) is None


@pytest.mark.parametrize("count", [0, 3, 5])
def test_only_whole_chunks_are_kept(count: int) -> None:
    with pytest.raises(ValueError, match="do not end at a chunk boundary"):
        store().add(ALICE, span(count), b"state")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 2), min_size=4, max_size=24), st.integers(0, 1)),
                max_size=30))  # fmt: skip
def test_a_hit_is_a_true_prefix_of_the_same_principal(actions: list[tuple[bool, list[int], int]]) -> None:
    kept = store(3000)
    added: list[tuple[int, tuple[int, ...]]] = []
    for is_add, numbers, who in actions:
        place = (ALICE, BOB)[who]
        tokens = array("i", numbers[: len(numbers) // 4 * 4])
        if is_add:
            kept.add(place, tokens, repr((who, tuple(tokens))).encode())
            added.append((who, tuple(tokens)))
        else:
            hit = kept.find(place, tokens, len(tokens))
            if hit is not None:
                assert any(
                    repr(entry).encode() == hit.state and entry[0] == who
                    and entry[1][: hit.num_tokens] == tuple(tokens[: hit.num_tokens])
                    for entry in added
                )  # fmt: skip
        assert kept.size_bytes <= 3000
