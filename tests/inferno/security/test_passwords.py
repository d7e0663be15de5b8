"""Passwords: rules, argon2id, the queue over threads and processes."""

import asyncio
import os
import re
import secrets
import threading
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferno_native.epochs import EpochTable

from inferno.errors import ApiError
from inferno.security import passwords
from inferno.security.passwords import Hasher, HashQueue, check_new, is_common, normalized

CHEAP = Hasher(memory_kib=64, passes=1)
GOOD = "plum-orbit-Yonder7"


def test_pwd_1_sec_041_parameters_stand_in_the_hash_with_a_salt_each():
    hasher = Hasher()
    first, second = hasher.hash(GOOD), hasher.hash(GOOD)
    found = re.fullmatch(r"\$argon2id\$v=19\$m=(\d+),t=(\d+),p=(\d+)\$([A-Za-z0-9+/]+)\$[A-Za-z0-9+/]+", first)
    assert int(found[1]) >= 19 * 1024
    assert int(found[2]) >= 2
    assert int(found[3]) == 1
    assert len(found[4]) == 22  # 16 bytes
    assert first != second
    assert hasher.verify(first, GOOD)
    assert not hasher.verify(first, GOOD + "x")


def test_pwd_1_sec_042_weaker_parameters_are_noticed():
    assert Hasher().needs_rehash(CHEAP.hash(GOOD))
    assert not CHEAP.needs_rehash(CHEAP.hash(GOOD))


def test_sec_043_the_stored_hash_is_no_password():
    stored = CHEAP.hash(GOOD)
    assert not CHEAP.verify(stored, stored)


@pytest.mark.parametrize("stored", ["", "x", "$argon2id$", "$argon2i$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaA", "\0"])
def test_nothing_fits_a_missing_or_broken_hash(stored):
    assert not CHEAP.verify(stored, GOOD)
    assert not CHEAP.verify(stored, "")


def test_pwd_5_sec_045_one_unicode_rule():
    composed, decomposed = "caf\u00e9-caf\u00e9-caf\u00e9", "cafe\u0301-cafe\u0301-cafe\u0301"
    assert composed != decomposed
    assert CHEAP.verify(CHEAP.hash(composed), decomposed)
    assert CHEAP.verify(CHEAP.hash(decomposed), composed)
    assert not CHEAP.verify(CHEAP.hash("\ufb01" + GOOD), "fi" + GOOD)  # NFC, not NFKC


@pytest.mark.parametrize("character", ["\0", "\n", "\t", "\x1b", "\x7f", "\x85", "\ud800"])
def test_pwd_5_sec_046_control_characters_are_refused_not_cut(character):
    with pytest.raises(ApiError) as caught:
        check_new(GOOD + character + "more")
    assert caught.value.code == "weak_password"
    assert not CHEAP.verify(CHEAP.hash(GOOD), GOOD + character + "more")


@given(st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_pwd_5_normalization_is_idempotent(text):
    assert normalized(normalized(text)) == normalized(text) == unicodedata.normalize("NFC", text)


def test_pwd_5_every_character_counts_up_to_the_limit():
    long = secrets.token_urlsafe(900)[:1024]
    check_new(long)
    assert not CHEAP.verify(CHEAP.hash(long), long[:-1])
    with pytest.raises(ApiError, match="at most 1024"):
        check_new(long + "x")
    with pytest.raises(ApiError, match="at least 12"):
        check_new("Ab3$efgh!jk")
    check_new("\U0001f600\U0001f680\U0001f984\U0001f40d\U0001f9ff\U0001f308\U0001f3a7\U0001f355\U0001f4a1\U0001f512\U0001f9e0\U0001f6f8")


@pytest.mark.parametrize(
    "password",
    [
        "password1234", "Password1234", "P@ssw0rd1234", "passwordpassword", "123456789012", "qwertyqwerty",
        "aaaaaaaaaaaaaaaa", "abababababab", "            ", "administrator", "Administrator1!", "letmeinletmein",
        "your-secure-admin-password", "1q2w3e4r5t6y", "iloveyou123456", "abcdefghijklm", "ＰＡＳＳＷＯＲＤ１２３４",
        "monkey!!!!!!", "123456password",
    ],
)  # fmt: skip
def test_pwd_6_common_passwords_are_refused(password):
    with pytest.raises(ApiError) as caught:
        check_new(password)
    assert caught.value.code == "weak_password"
    assert password.strip() == "" or password not in caught.value.message


def test_pwd_6_the_list_is_long_and_good_passwords_pass():
    assert len(passwords._common()) >= 3000
    assert sum(len(word) >= 12 for word in passwords._common()) >= 3000
    assert all(is_common(word) for word in passwords._common())
    for _ in range(500):
        check_new(secrets.token_urlsafe(12))
        check_new(secrets.token_hex(8))
    for phrase in ("tall violet engines hum", "Kaffee um halb neun?", GOOD, "mein-hund-heisst-rex-9"):
        check_new(phrase)


def test_a_password_does_not_repeat_the_name():
    with pytest.raises(ApiError, match="user name"):
        check_new("Annabelle-1234", username="annabelle")


def test_pwd_3_sec_050_at_most_two_run_and_the_queue_is_short():
    gate = threading.Event()
    running = []
    peak = []

    class Slow(Hasher):
        def hash(self, password):
            running.append(1)
            peak.append(len(running))
            gate.wait(60)
            running.pop()
            return "done"

    async def main():
        queue = HashQueue(Slow(memory_kib=64, passes=1), max_waiting=4, threads=2)
        tasks = [asyncio.create_task(queue.hash("x")) for _ in range(50)]
        async with asyncio.timeout(60):
            while len(running) < 2:
                await asyncio.sleep(0.01)
        gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        queue.close()
        return results

    results = asyncio.run(main())
    refused = [result for result in results if isinstance(result, ApiError)]
    assert results.count("done") == 6
    assert len(refused) == 44
    assert {(error.code, error.status, error.retry_after) for error in refused} == {("overloaded", 503, 2)}
    assert max(peak) == 2


def test_pwd_3_at_most_two_threads_and_one_on_a_small_machine(monkeypatch):
    for cores, expected in ((1, 1), (2, 1), (3, 2), (64, 2), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        assert passwords.num_threads() == expected


def test_pwd_3_a_thread_rests_after_its_work_but_the_answer_does_not_wait(monkeypatch):
    rests = []
    answered = threading.Event()

    def rest(seconds):
        answered.wait(60)  # the answer arrives while the thread rests
        rests.append(seconds)

    monkeypatch.setattr(passwords.time, "sleep", rest)

    async def main():
        queue = HashQueue(Hasher(memory_kib=4096, passes=2))
        stored = await queue.hash(GOOD)
        answered.set()
        assert await queue.verify(stored, GOOD)
        with pytest.raises(ValueError, match="control"):
            await queue.hash("a\nb")
        queue.close()

    asyncio.run(main())
    assert len(rests) == 3
    assert rests[0] > 0


def test_pwd_3_two_at_a_time_over_all_workers():
    """Two queues with the table of one host stand for two workers: together they never hash three at once."""
    table = EpochTable.create()
    lock = threading.Lock()
    state = {"running": 0, "peak": 0}
    stay = threading.Event()

    class Counting(Hasher):
        def hash(self, password):
            with lock:
                state["running"] += 1
                state["peak"] = max(state["peak"], state["running"])
            stay.wait(0.02)
            with lock:
                state["running"] -= 1
            return "done"

    async def main():
        queues = [HashQueue(Counting(memory_kib=64, passes=1), lock_fd=table.fd, threads=2) for _ in range(2)]
        await asyncio.gather(*(queue.hash("x") for queue in queues for _ in range(10)))
        for queue in queues:
            queue.close()

    asyncio.run(main())
    assert state == {"running": 0, "peak": 2}
    table.close()
