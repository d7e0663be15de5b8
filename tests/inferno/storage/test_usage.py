"""Usage counters: exact over threads of work, crashes at every step, and a refusing disk."""

import asyncio
import os
import resource
import signal
import subprocess
import sys

from inferno.storage import usage
from inferno.storage.usage import UsageJournal

NOW = 1_800_000_000.0  # 2027-01-15


def test_requests_and_tokens_are_counted_by_day_account_key_and_model(store, tmp_path):
    async def main():
        async with store() as opened:
            journal = UsageJournal(tmp_path / "usage")
            for i in range(100):
                journal.add(f"acct_{i % 2}", "k1" if i % 4 else None, "m/a", 10, i, NOW)
            journal.add("acct_0", None, "m/b", 1, 1, NOW + 86400)
            assert await journal.count(opened, NOW) == 1
            assert await journal.count(opened, NOW) == 0
            journal.add("acct_0", None, "m/b", 1, 1, NOW + 86400)
            await journal.count(opened, NOW)
            rows = await usage.report(opened, account_id=None)
            assert await usage.totals(opened) == (102, 1002, sum(range(100)) + 2)
            assert [(r["day"], r["account_id"], r["key_id"], r["model"], r["requests"]) for r in rows] == [
                ("2027-01-15", "acct_0", "", "m/a", 25),
                ("2027-01-15", "acct_0", "k1", "m/a", 25),
                ("2027-01-15", "acct_1", "k1", "m/a", 50),
                ("2027-01-16", "acct_0", "", "m/b", 2),
            ]
            assert len(await usage.report(opened, account_id="acct_1")) == 1
            assert len(await usage.report(opened, account_id=None, since="2027-01-16")) == 1
            assert len(await usage.report(opened, account_id=None, key_id="k1", model="m/a")) == 2
            paged, after = [], None
            while page := await usage.report(opened, account_id=None, after=after, num_rows=3):
                paged += page
                after = tuple(page[-1][name] for name in ("day", "account_id", "key_id", "model"))
            assert paged == rows
            journal.close()

    asyncio.run(main())


def test_kill_9_loses_no_answered_request_and_counts_none_twice(store, tmp_path):
    """Six processes write, say so, and are killed in the middle; some also count. The sum is what they said at least,
    and at most one more each (written, not said yet)."""
    code = (
        "import sys, pathlib, asyncio; from inferno.storage.usage import UsageJournal\n"
        "from inferno.storage.store import Store\n"
        "async def main():\n"
        "    s = Store(sys.argv[2]); j = UsageJournal(pathlib.Path(sys.argv[1]))\n"
        "    for i in range(10**6):\n"
        "        j.add('a', None, 'm', 1, 2, 1.8e9); print(i + 1, flush=True)\n"
        "        if i % 7 == 3: await j.count(s, 1.8e9)\n"
        "asyncio.run(main())\n"
    )

    async def prepare():
        async with store() as opened:
            return opened._url

    url = asyncio.run(prepare())
    told = 0
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "usage"), url], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for number, child in enumerate(children):
        last = 0
        for _ in range(30 + 11 * number):
            last = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        child.wait()
        rest = child.stdout.read().split()
        told += int(rest[-1]) if rest else last
        child.stdout.close()

    async def count():
        async with store() as opened:
            journal = UsageJournal(tmp_path / "usage")
            await journal.count(opened, NOW)
            found = await usage.totals(opened)
            await journal.count(opened, NOW)
            assert await usage.totals(opened) == found
            journal.close()
            return found

    requests, prompt, completion = asyncio.run(count())
    assert told <= requests <= told + len(children)
    assert (prompt, completion) == (requests, 2 * requests)
    assert list((tmp_path / "usage").glob("batch-*")) == []


def test_a_batch_that_was_counted_but_not_removed_counts_once(store, tmp_path):
    async def main():
        async with store() as opened:
            journal = UsageJournal(tmp_path / "usage")
            journal.add("a", None, "m", 1, 2, NOW)
            journal._rotate()
            (batch,) = (tmp_path / "usage").glob("batch-*")
            data = batch.read_bytes()
            assert await journal.count(opened, NOW) == 1
            batch.write_bytes(data)  # a crash between commit and unlink
            assert await journal.count(opened, NOW) == 0
            assert await usage.totals(opened) == (1, 1, 2)
            assert not batch.exists()
            journal.close()

    asyncio.run(main())


def test_a_living_process_keeps_its_journal(store, tmp_path):
    async def main():
        async with store() as opened:
            mine, theirs = UsageJournal(tmp_path / "usage"), UsageJournal(tmp_path / "usage")
            theirs.add("a", None, "m", 1, 2, NOW)
            assert await mine.count(opened, NOW) == 0
            theirs.close()
            assert await mine.count(opened, NOW) == 1
            mine.close()

    asyncio.run(main())


def test_a_journal_is_never_seen_before_it_is_locked(store, tmp_path, monkeypatch):
    """Another process looks for orphans in the moment between a journal's creation and its lock."""

    async def main():
        async with store() as opened:
            theirs = UsageJournal(tmp_path / "usage")
            lock = usage.fcntl.flock

            def look_then_lock(fd, how):
                if how == usage.fcntl.LOCK_EX:
                    monkeypatch.setattr(usage.fcntl, "flock", lock)
                    theirs._adopt_orphans()
                lock(fd, how)

            monkeypatch.setattr(usage.fcntl, "flock", look_then_lock)
            mine = UsageJournal(tmp_path / "usage")
            mine.add("a", None, "m", 1, 2, NOW)
            assert await theirs.count(opened, NOW) == 0  # it lives
            assert await mine.count(opened, NOW) == 1
            assert await usage.totals(opened) == (1, 1, 2)
            for journal in (mine, theirs):
                journal.close()

    asyncio.run(main())


def test_a_full_disk_keeps_lines_in_memory(store, tmp_path):
    async def main():
        async with store() as opened:
            journal = UsageJournal(tmp_path / "usage")
            journal.add("a", None, "m", 1, 2, NOW)
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (os.fstat(journal._fd).st_size + 5, hard))
            try:
                journal.add("a", None, "m", 1, 2, NOW)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
                signal.signal(signal.SIGXFSZ, previous)
            journal.add("a", None, "m", 1, 2, NOW)
            await journal.count(opened, NOW)
            assert await usage.totals(opened) == (3, 3, 6)
            journal.close()

    asyncio.run(main())


def test_a_damaged_line_costs_only_itself(store, tmp_path):
    async def main():
        async with store() as opened:
            journal = UsageJournal(tmp_path / "usage")
            journal.add("a", None, "m", 1, 2, NOW)
            os.write(journal._fd, b'["2027-01-15","a","","m",1,\n')
            journal.add("a", None, "m", 1, 2, NOW)
            await journal.count(opened, NOW)
            assert await usage.totals(opened) == (2, 2, 4)
            journal.close()

    asyncio.run(main())
