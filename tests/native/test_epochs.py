"""The shared identity table: epochs, throttle words, hostile headers, several processes."""

import mmap
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferno_native.epochs import HEAT_UNIT, EpochTable


@pytest.fixture
def table():
    made = EpochTable.create(1024, 1024)
    yield made
    made.close()


def test_a_bump_is_seen_through_every_mapping(table):
    other = EpochTable.attach(os.dup(table.fd))
    before = other.read(b"u:1")
    table.bump(b"u:1")
    assert other.read(b"u:1") == table.read(b"u:1") == before + 1
    other.bump_all()
    assert table.read(b"u:1") == before + 2
    assert table.read(b"u:2") == 1
    other.close()
    other.close()


def test_a_child_process_sees_a_bump_and_its_bumps_are_seen(table):
    os.set_inheritable(table.fd, True)
    code = (
        "import sys; from inferno_native.epochs import EpochTable\n"
        "t = EpochTable.attach(int(sys.argv[1])); print(t.read(b'k:1'))\n"
        "[t.bump(b'k:1') for _ in range(20000)]"
    )
    table.bump(b"k:1")
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(table.fd)], pass_fds=[table.fd], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for child in children:
        assert int(child.communicate()[0]) >= 1
        assert child.returncode == 0
    assert table.read(b"k:1") == 60001  # atomic: no bump is lost


def test_threads_lose_no_heat(table):
    def add():
        for _ in range(2000):
            table.add_heat(5, 1000, HEAT_UNIT, 60_000)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert table.heat(5) == (8000 * HEAT_UNIT, 1000)


def test_heat_cools_with_time_and_is_capped(table):
    assert table.heat(9) == (0, 0)
    assert table.add_heat(9, 10_000, 3 * HEAT_UNIT, 1000) == 3 * HEAT_UNIT
    assert table.add_heat(9, 11_000, HEAT_UNIT, 1000) == 3 * HEAT_UNIT
    assert table.add_heat(9, 10_500, HEAT_UNIT, 1000) == 4 * HEAT_UNIT  # a clock that stands back cools nothing
    assert table.take_heat(9, HEAT_UNIT) == 3 * HEAT_UNIT
    assert table.heat(9)[1] == 10_500
    assert table.take_heat(9, 1 << 31) == 0
    for _ in range(3):
        table.add_heat(9, 10_500, (1 << 32) - 1, 1000)
    assert table.heat(9)[0] == (1 << 24) - 1
    with pytest.raises(ValueError, match="decay_ms"):
        table.add_heat(9, 1, 1, 0)


@given(st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 5000)), max_size=30), st.integers(1, 60_000))
@settings(max_examples=100, deadline=None)
def test_heat_law_against_plain_arithmetic(steps, decay_ms):
    table = EpochTable.create(2, 2)
    heat, last, now = 0, 0, 0
    for pause, amount in steps:
        now += pause
        heat = max(0, heat - (now - last) * HEAT_UNIT // decay_ms) + amount
        last = now
        assert table.add_heat(1, now, amount, decay_ms) == heat
    table.close()


@pytest.mark.parametrize("sizes", [(0, 2), (3, 2), (2, 0), (2, 6)])
def test_sizes_are_powers_of_two(sizes):
    with pytest.raises(ValueError, match="powers of two"):
        EpochTable.create(*sizes)


@pytest.mark.parametrize(("word", "value"), [(0, 1), (1, 2), (2, 0), (2, 4096), (3, 0), (3, 1 << 63), (2, 3)])
def test_a_hostile_header_is_refused(table, word, value):
    with mmap.mmap(table.fd, 0) as view:
        view[word * 8 : word * 8 + 8] = value.to_bytes(8, "little")
    with pytest.raises(ValueError, match="identity table"):
        EpochTable.attach(table.fd)


def test_a_file_that_is_no_table_and_direct_construction_are_refused(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"x" * 40)
    fd = os.open(path, os.O_RDWR)
    with pytest.raises(ValueError, match="40 bytes"):
        EpochTable.attach(fd)
    os.close(fd)
    with pytest.raises(TypeError, match="create"):
        EpochTable()


def test_the_table_cannot_be_cut_under_a_reader(table):
    if not hasattr(os, "memfd_create"):
        pytest.skip("no sealing here")
    with pytest.raises(OSError):
        os.ftruncate(table.fd, 8)


@pytest.mark.parametrize("wrong", [None, "u:1", bytearray(b"u:1")])
def test_identities_are_bytes(table, wrong):
    with pytest.raises(TypeError):
        table.read(wrong)
