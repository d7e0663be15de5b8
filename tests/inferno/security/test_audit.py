"""The audit log: chain, tampering, rotation, floods, a full disk, crashes, file safety."""

import asyncio
import json
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferno.errors import ApiError, StartError
from inferno.security import audit_format, audit_log
from inferno.security.audit import AuditFailed, AuditLog, AuditWriter, rotated_files
from inferno.security.audit_flood import MAX_PER_MINUTE, MAX_SOURCES, FloodFilter
from inferno.security.audit_format import record
from inferno.security.audit_log import BROKEN, INTACT, UNREADABLE, Filter
from inferno.security.keys import KeyHasher
from tests.conftest import CASES

KEY = bytes(range(32))


class Log:
    """A log in a folder, with its head beside the folder."""

    def __init__(self, folder, **options):
        self.path = folder / "audit" / "audit.jsonl"
        self.head_path = folder / "audit.head"
        self.options = options

    def open(self):
        writer = AuditWriter(self.path, self.head_path, KEY, **self.options)
        writer.open()
        return writer

    def fill(self, num_records, group=1):
        writer = self.open()
        for start in range(0, num_records, group):
            writer.commit(
                record("key.create", actor=f"acct_{i}", actor_type="user", ip="203.0.113.7", target=f"k{i}")
                for i in range(start, min(num_records, start + group))
            )
        writer.close()

    def head(self):
        return audit_log.read_head(self.head_path, KEY)

    def verify(self, **options):
        return audit_log.verify(self.path, KEY, self.head(), **options)


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path)


@contextmanager
def full_disk(num_bytes):
    """Let no file grow beyond num_bytes: EFBIG in place of ENOSPC, from the real system call."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


# ---------------------------------------------------------------- records


def test_aud_1_sec_149_a_record_says_who_what_when_where_result_and_why(log):
    writer = log.open()
    writer.commit(
        [record("key.revoke", actor="acct_1", actor_type="user", ip="2001:db8::/64", target="k1", reason="x",
                request_id="req_9")]
    )  # fmt: skip
    writer.close()
    (line,) = log.path.read_bytes().splitlines()
    values = json.loads(line)
    assert list(values) == ["seq", "time", *audit_format.FIELDS, "prev", "hash"]
    assert values["seq"] == 1
    assert values["prev"] == "0" * 64
    assert values["time"].endswith("Z")
    assert (values["actor"], values["ip"], values["target"]) == ("acct_1", "2001:db8::/64", "k1")
    assert log.verify().status == INTACT


def injections():
    lines = (CASES / "scan_attack.jsonl").read_text().splitlines()
    return [case for case in map(json.loads, lines) if case["category"] == "log-injection"]


@pytest.mark.parametrize("case", injections(), ids=lambda case: case["id"])
def test_sec_147_hostile_names_stay_one_escaped_line(log, case):
    writer = log.open()
    writer.commit([record("auth.login", result="failure", target=case["text"])])
    writer.close()
    data = log.path.read_bytes()
    assert data.count(b"\n") == 1
    assert all(0x20 <= byte < 0x7F for byte in data[:-1])
    assert json.loads(data)["target"] == case["text"][: audit_format.MAX_FIELD_LENGTH]
    assert log.verify().status == INTACT


@given(st.text(max_size=400), st.text(max_size=400))
@settings(max_examples=100, deadline=None)
def test_aud_1_any_text_is_one_bounded_ascii_line(actor, reason):
    chain = audit_format.Chain(KEY)
    line, digest = audit_format.encode(record("auth.failure", actor=actor, reason=reason), 7, 1.5, "0" * 64, chain)
    assert line.count(b"\n") == 1
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])
    values = json.loads(line)
    assert values["hash"] == digest
    assert len(values["actor"]) <= audit_format.MAX_FIELD_LENGTH


@pytest.mark.parametrize("field", ["actor", "target", "reason", "request_id"])
def test_aud_5_a_credential_in_a_field_is_masked(log, field):
    key = KeyHasher(b"p" * 32).create()
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0." + "s" * 43
    writer = log.open()
    writer.commit([record("model.load", **{field: f"a {key.text} b {token} c"})])
    writer.close()
    assert json.loads(log.path.read_bytes())[field] == f"a [key {key.id}] b [token] c"


@pytest.mark.parametrize(
    "wrong",
    [
        {"event": "no.such"},
        {"event": "auth.login", "result": "maybe"},
        {"event": "auth.login", "result": "success", "actor": 7},
        {"event": "auth.login", "result": "success", "password": "x"},
        {},
    ],
)
def test_malformed_records_are_refused(wrong):
    with pytest.raises(ValueError, match="audit"):
        audit_format.check(wrong)


# ---------------------------------------------------------------- tampering


def test_sec_144_change_of_one_byte_at_every_position_is_found(log):
    log.fill(4)
    good = log.path.read_bytes()
    head = log.head()
    line_of = [good[:position].count(b"\n") + 1 for position in range(len(good))]
    for position in range(len(good)):
        for flip in (0x01, 0x80, good[position] ^ 0x0A):
            bad = bytearray(good)
            bad[position] ^= flip
            if bytes(bad) == good:
                continue
            log.path.write_bytes(bad)
            found = audit_log.verify(log.path, KEY, head)
            assert found.status == BROKEN, (position, flip)
            assert found.first_bad in (line_of[position], line_of[position] + 1), (position, flip)


def test_sec_144_every_single_deletion_and_insertion_of_a_byte_is_found(log):
    log.fill(3)
    good = log.path.read_bytes()
    head = log.head()
    for position in range(len(good)):
        log.path.write_bytes(good[:position] + good[position + 1 :])
        assert audit_log.verify(log.path, KEY, head).status == BROKEN, position
        log.path.write_bytes(good[:position] + b" " + good[position:])
        assert audit_log.verify(log.path, KEY, head).status == BROKEN, position


@pytest.mark.parametrize("chosen", [0, 1, 4999, 9998, 9999])
def test_sec_144_deletion_insertion_swap_and_truncation_name_the_first_bad_record(log, chosen):
    log.fill(10_000, group=500)
    lines = log.path.read_bytes().splitlines(keepends=True)
    head = log.head()

    def verdict(changed):
        log.path.write_bytes(b"".join(changed))
        return audit_log.verify(log.path, KEY, head)

    assert verdict(lines).status == INTACT
    deleted = verdict(lines[:chosen] + lines[chosen + 1 :])
    assert (deleted.status, deleted.first_bad) == (BROKEN, chosen + 1)
    inserted = verdict([*lines[:chosen], lines[0], *lines[chosen:]])
    assert (inserted.status, inserted.first_bad) == (BROKEN, chosen + 1 if chosen else 2)
    if chosen < 9999:
        swapped = list(lines)
        swapped[chosen], swapped[chosen + 1] = swapped[chosen + 1], swapped[chosen]
        found = verdict(swapped)
        assert (found.status, found.first_bad) == (BROKEN, chosen + 1)
    cut = verdict(lines[:chosen])
    assert (cut.status, cut.first_bad) == (BROKEN, chosen + 1)
    assert "missing" in cut.reason


def test_aud_4_a_forged_record_without_the_key_does_not_fit(log):
    log.fill(3)
    lines = log.path.read_bytes().splitlines(keepends=True)
    forged, _ = audit_format.encode(
        record("key.create", actor="acct_0"), 3, 1.0, json.loads(lines[1])["hash"], audit_format.Chain(bytes(32))
    )
    log.path.write_bytes(b"".join([*lines[:2], forged]))
    found = log.verify()
    assert (found.status, found.first_bad) == (BROKEN, 3)


def test_aud_6_replay_of_an_older_log_and_of_an_older_rotated_file_is_found(tmp_path):
    log = Log(tmp_path, max_file_bytes=2000)
    log.fill(8)
    older = {path.name: path.read_bytes() for path in audit_log.files(log.path)}
    log.fill(20)
    files = audit_log.files(log.path)
    assert log.verify().status == INTACT
    closed = rotated_files(log.path)
    keep = {path: path.read_bytes() for path in files}
    closed[1].write_bytes(keep[closed[0]])  # an older file in place of a newer one
    found = log.verify()
    assert found.status == BROKEN
    assert "repeated" in found.reason
    for path in files:
        path.unlink()
    for name, data in older.items():
        (log.path.parent / name).write_bytes(data)
    found = log.verify()
    assert (found.status, found.first_bad) == (BROKEN, 9)


def test_aud_4_a_head_of_another_history_and_a_forged_head_are_found(log, tmp_path):
    log.fill(3)
    other = Log(tmp_path / "other")
    (tmp_path / "other").mkdir()
    other.fill(2)
    assert audit_log.verify(log.path, KEY, other.head()).first_bad == 2
    log.head_path.write_bytes(log.head_path.read_bytes().replace(b'"seq":3', b'"seq":2'))
    with pytest.raises(ValueError, match="not sealed"):
        log.head()
    with pytest.raises(StartError, match="not sealed"):
        log.open()


def test_sec_146_rotation_carries_the_last_hash(tmp_path):
    log = Log(tmp_path, max_file_bytes=3000)
    log.fill(40)
    closed = rotated_files(log.path)
    assert len(closed) > 3
    previous = "0" * 64
    for path in [*closed, log.path]:
        lines = path.read_bytes().splitlines()
        if lines:
            assert json.loads(lines[0])["prev"] == previous
            previous = json.loads(lines[-1])["hash"]
    found = log.verify()
    assert (found.status, found.records) == (INTACT, 40)
    gone = closed[1].read_bytes()
    closed[1].unlink()
    assert log.verify().status == BROKEN
    closed[1].write_bytes(gone)
    anchor = (1, json.loads(closed[0].read_bytes().splitlines()[0])["hash"])
    assert log.verify(anchor=anchor).records == 39


def test_aud_6_exit_two_when_it_cannot_be_read(log):
    log.fill(2)
    log.path.unlink()
    log.path.mkdir()
    assert log.verify().status == UNREADABLE


def test_aud_6_verify_works_beside_a_live_writer(tmp_path):
    log = Log(tmp_path, max_file_bytes=20_000)
    writer = log.open()
    for i in range(300):
        writer.commit([record("key.create", target=f"k{i}")] * 3)
        if i % 7 == 0:
            with open(log.path, "ab") as half:  # what a reader sees in the middle of a write
                half.write(b'{"seq":')
            assert log.verify().status == INTACT
            os.truncate(log.path, writer._size)
    writer.close()
    assert log.verify().records == 900


# ---------------------------------------------------------------- search


def test_search_is_newest_first_paged_and_filtered(tmp_path):
    log = Log(tmp_path, max_file_bytes=4000)
    log.fill(50)
    found = audit_log.search(log.path, Filter(), num_rows=5)
    assert [values["seq"] for values in found] == [50, 49, 48, 47, 46]
    seen = []
    before = None
    while page := audit_log.search(log.path, Filter(event="key.create"), num_rows=7, before=before):
        seen += [values["seq"] for values in page]
        before = page[-1]["seq"]
    assert seen == list(range(50, 0, -1))
    assert [v["seq"] for v in audit_log.search(log.path, Filter(actor="acct_9"), num_rows=9)] == [10]
    assert [v["seq"] for v in audit_log.search(log.path, Filter(text='"k7"'), num_rows=9)] == [8]
    assert audit_log.search(log.path, Filter(since="2999-01-01"), num_rows=9) == []
    assert audit_log.search(log.path, Filter(until="2001-01-01"), num_rows=9) == []


# ---------------------------------------------------------------- files, crashes, a full disk


def test_aud_7_files_are_private(log):
    log.fill(1)
    assert stat.S_IMODE(os.stat(log.path.parent).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(log.path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(log.head_path).st_mode) == 0o600


def test_sec_150_a_link_a_readable_file_and_a_second_name_are_refused(log, tmp_path):
    log.fill(1)
    os.chmod(log.path, 0o644)
    with pytest.raises(StartError, match="read by others"):
        log.open()
    os.chmod(log.path, 0o600)
    os.chmod(log.path.parent, 0o755)
    with pytest.raises(StartError, match="0700"):
        log.open()
    os.chmod(log.path.parent, 0o700)
    os.link(log.path, tmp_path / "second")
    with pytest.raises(StartError, match="one name"):
        log.open()
    (tmp_path / "second").unlink()
    log.path.rename(tmp_path / "elsewhere")
    log.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartError, match="links"):
        log.open()
    log.path.unlink()
    os.mkfifo(log.path, 0o600)
    with pytest.raises(StartError):
        log.open()


def test_a_log_that_was_cut_while_nobody_wrote_stops_the_start(log):
    log.fill(5)
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(lines[:3]))
    with pytest.raises(StartError, match="ends at record 3, but its head says 5"):
        log.open()
    log.path.write_bytes(b"".join([*lines[:4], lines[4].replace(b"k4", b"k9")]))
    with pytest.raises(StartError, match="last record"):
        log.open()


def test_a_partial_record_of_a_crash_is_removed_and_told(log):
    log.fill(2)
    with open(log.path, "ab") as file:
        file.write(b'{"seq":3,"time":"20')
    log.fill(1)
    lines = [json.loads(line) for line in log.path.read_bytes().splitlines()]
    assert [line["event"] for line in lines] == ["key.create", "key.create", "audit.gap", "key.create"]
    assert lines[2]["reason"] == "partial_record bytes=19"
    assert log.verify().status == INTACT


def test_sec_143_kill_9_loses_nothing_that_was_answered(tmp_path):
    code = (
        "import sys, pathlib; from inferno.security.audit import AuditWriter\n"
        "from inferno.security.audit_format import record\n"
        "d = pathlib.Path(sys.argv[1]); w = AuditWriter(d/'audit'/'audit.jsonl', d/'audit.head', bytes(range(32)),"
        " max_file_bytes=5000); w.open()\n"
        "while True:\n"
        "    w.commit([record('key.revoke', target='k')] * 3); print(w.seq, flush=True)\n"
    )
    log = Log(tmp_path, max_file_bytes=5000)
    told = 0
    for round_number in range(6):
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(5 + 17 * round_number):
            told = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        found = log.verify()
        assert found.status == INTACT
        assert found.last_seq >= told
    writer = log.open()
    assert writer.seq >= told
    writer.close()


def test_a_full_disk_changes_nothing_and_the_chain_goes_on(log):
    log.fill(3)
    writer = log.open()
    size = log.path.stat().st_size
    with full_disk(size + 100), pytest.raises(AuditFailed):
        writer.commit([record("key.create", target="lost")])
    assert log.path.stat().st_size == size
    writer.commit([record("key.create", target="kept")])
    writer.close()
    found = log.verify()
    assert (found.status, found.records) == (INTACT, 4)


def test_a_deleted_log_is_a_failure_not_a_silent_loss(log):
    writer = log.open()
    writer.commit([record("key.create")])
    log.path.unlink()
    with pytest.raises(AuditFailed):
        writer.commit([record("key.create")])
    writer.close()


# ---------------------------------------------------------------- AuditLog: group commit, floods, gaps


def run_log(log, body, clock=None):
    async def main():
        writer = log.open()
        served = AuditLog(writer, **({"clock": clock} if clock else {}))
        served.start()
        try:
            return await body(served)
        finally:
            await served.close()

    return asyncio.run(main())


def test_sec_145_parallel_events_have_one_order_and_none_is_lost(log):
    async def body(served):
        async def one(i):
            await served.append([record("key.create", target=f"k{i}")], durable=True)

        for start in range(0, 10_000, 500):
            await asyncio.gather(*(one(i) for i in range(start, start + 500)))

    run_log(log, body)
    found = log.verify()
    assert (found.status, found.records) == (INTACT, 10_000)
    targets = [json.loads(line)["target"] for line in log.path.read_bytes().splitlines()]
    assert sorted(targets) == sorted(f"k{i}" for i in range(10_000))


def test_sec_141_sec_142_full_disk_refuses_the_waiting_counts_the_rest_and_records_the_gap(log):
    async def body(served):
        await served.append([record("server.start")], durable=True)
        with full_disk(log.path.stat().st_size + 10):
            for _ in range(7):
                served.note(record("guard.fault", result="error"))
            with pytest.raises(ApiError) as caught:
                await served.append([record("key.create")], durable=True)
            assert served.is_failing
            assert (caught.value.code, caught.value.status) == ("audit_unavailable", 503)
        await served.append([record("server.stop")], durable=True)
        assert not served.is_failing

    run_log(log, body)
    lines = [json.loads(line) for line in log.path.read_bytes().splitlines()]
    assert [line["event"] for line in lines] == ["server.start", "audit.gap", "server.stop"]
    assert lines[1]["reason"].startswith("count=7 since=")
    assert log.verify().status == INTACT


def test_who_goes_away_while_the_disk_refuses_stops_no_log(log, monkeypatch):
    """The one who waited is cancelled between the failed write and the news of it."""

    async def body(served):
        begun, go_on = threading.Event(), threading.Event()

        def refuse(_records):
            begun.set()
            go_on.wait(60)
            raise AuditFailed("no space")

        with monkeypatch.context() as patched:
            patched.setattr(served._writer, "commit", refuse)
            waiting = asyncio.create_task(served.append([record("key.create")], durable=True))
            await asyncio.to_thread(begun.wait, 60)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            go_on.set()
            async with asyncio.timeout(60):
                while not served.is_failing:
                    await asyncio.sleep(0.01)
        await asyncio.wait_for(served.append([record("key.revoke")], durable=True), 60)

    run_log(log, body)
    assert [json.loads(line)["event"] for line in log.path.read_bytes().splitlines()] == ["key.revoke"]


def test_aud_7_a_flood_is_bounded_and_its_count_is_exact(log):
    now = [1000.0]

    async def body(served):
        for _ in range(500):
            served.note(record("auth.failure", result="failure", ip="198.51.100.0/24", reason="expired"))
        served.note(record("auth.failure", result="failure", ip="203.0.113.1", reason="expired"))
        await served.append([], durable=True)
        now[0] += 61
        await served.append([], durable=True)
        for _ in range(3):
            served.note(record("auth.failure", result="failure", ip="198.51.100.0/24"))
        await served.append([], durable=True)

    run_log(log, body, clock=lambda: now[0])
    lines = [json.loads(line) for line in log.path.read_bytes().splitlines()]
    told = [line for line in lines if line["reason"].startswith("aggregated")]
    assert len(told) == 1
    assert told[0]["reason"] == f"aggregated count={500 - MAX_PER_MINUTE} seconds=60"
    assert len(lines) == MAX_PER_MINUTE + 1 + 1 + 3


def test_aud_7_the_count_of_an_open_window_is_written_at_the_end(log):
    async def body(served):
        for _ in range(100):
            served.note(record("limit.exceeded", result="failure", ip="10.0.0.1"))

    run_log(log, body)
    lines = [json.loads(line) for line in log.path.read_bytes().splitlines()]
    assert len(lines) == MAX_PER_MINUTE + 1
    assert lines[-1]["reason"].startswith(f"aggregated count={100 - MAX_PER_MINUTE} ")


def test_aud_7_memory_is_bounded_whatever_the_sources(log):
    flood = FloodFilter()
    for i in range(MAX_SOURCES * 2):
        flood.passes(record("auth.failure", result="failure", ip=f"s{i}"), 1.0)
    assert len(flood._windows) <= MAX_SOURCES + 1
    (rest,) = flood.due(100.0)
    assert rest["ip"] == "*"
    assert rest["reason"].startswith(f"aggregated count={MAX_SOURCES - MAX_PER_MINUTE} ")


def test_security_successes_are_never_aggregated():
    flood = FloodFilter()
    assert all(flood.passes(record("key.create", ip="a"), 1.0) for _ in range(1000))
    assert all(flood.passes(record("auth.login", ip="a"), 1.0) for _ in range(1000))


def test_key_uses_of_all_workers_become_one_record_an_hour():
    flood = FloodFilter()
    first = record("auth.key", target="k1", ip="a", reason="count=0")
    assert flood.passes(first, 3600.0)
    assert first["reason"] == "first_use count=0"
    assert not flood.passes(record("auth.key", target="k1", ip="a", reason="count=4"), 3700.0)
    assert flood.passes(record("auth.key", target="k1", ip="b", reason="count=0"), 3700.0)
    later = record("auth.key", target="k1", ip="a", reason="count=5")
    assert flood.passes(later, 7200.0)
    assert later["reason"] == "first_use count=9"


def test_nothing_is_accepted_after_close(log):
    async def main():
        served = AuditLog(log.open())
        served.start()
        await served.close()
        with pytest.raises(ApiError):
            await served.append([record("key.create")], durable=True)

    asyncio.run(main())


def test_random_tampering_of_a_random_log_is_found(log):
    rng = random.Random(4)
    log.fill(30)
    good = log.path.read_bytes()
    head = log.head()
    for _ in range(500):
        start = rng.randrange(len(good))
        end = min(len(good), start + rng.choice((1, 2, 40, 600)))
        changed = good[:start] + rng.randbytes(rng.choice((0, 1, 5, 40))) + good[end:]
        if changed == good:
            continue
        log.path.write_bytes(changed)
        found = audit_log.verify(log.path, KEY, head)
        # Whatever follows the last record's newline is a write in progress; everything else is a break.
        assert found.status == BROKEN or changed.startswith(good), (start, end)
