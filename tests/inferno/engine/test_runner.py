"""A real engine process on the real model, driven over its sockets: exactness, text, limits, leaving, dying."""

from __future__ import annotations

import itertools
import random
import socket
import time
from collections.abc import Iterator

import pytest

from inferno.ipc import encode_frame
from inferno.messages import (
    ChatPrompt,
    ClearPrefixes,
    Detokenize,
    Drain,
    Prepare,
    Sampling,
    Start,
    TextPrompt,
    TokenPrompt,
)
from tests.inferno.engine.client import ALICE, BOB, GREEDY, Answer, EngineUnderTest, Worker
from tests.models import demo_model

pytestmark = pytest.mark.e2e
WARM = Sampling(temperature=0.9, top_p=0.95)


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineUnderTest]:
    with EngineUnderTest(
        demo_model(), slots=8, context_size=512, prefix_cache_mb=64, max_queue=96
    ) as running:
        yield running


@pytest.fixture
def worker(engine: EngineUnderTest) -> Iterator[Worker]:
    connection = engine.attach()
    yield connection
    connection.close()


def chat(text: str) -> ChatPrompt:
    return ChatPrompt(messages=[{"role": "user", "content": text}])


def words(seed: int, count: int) -> str:
    rng = random.Random(seed)
    return " ".join(
        rng.choice(["river", "stone", "cloud", "apple", "seven", "quiet", "paper", "green", "north", "lamp"])
        for _ in range(count)
    )


def noise(worker: Worker, count: int, principal: bytes = BOB) -> list[int]:
    """Other requests of different lengths, running at the same time."""
    return [worker.submit(chat(words(100 + i, 5 + 11 * i)), principal=principal, max_tokens=10 + i % 7, seed=i,
                          sampling=WARM, ignore_eos=True) for i in range(count)]  # fmt: skip


# ------------------------------------------------------------------ exactness


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_bytes_alone_and_among_others_cold_and_cached(
    engine: EngineUnderTest, worker: Worker, seed: int
) -> None:
    prompt = chat(words(seed, 110) + " Continue:")
    for sampling in (GREEDY, WARM):
        options = {"sampling": sampling, "seed": seed, "max_tokens": 20}
        cold = worker.run(prompt, cache_prompt=False, **options)
        others = noise(worker, 10)
        among = worker.submit(prompt, cache_prompt=False, **options)
        more = noise(worker, 6)
        worker.finish([among, *others, *more])
        first = worker.run(prompt, cache_salt=bytes([seed]), **options)
        others = noise(worker, 6)
        hit = worker.submit(prompt, cache_salt=bytes([seed]), **options)
        worker.finish([hit, *others])
        cached = worker.answers[hit]
        assert cold.text
        assert cold.text == worker.answers[among].text == first.text == cached.text
        assert cached.usages[0].cached_tokens >= 64
        assert cold.usages[0].cached_tokens == 0
    engine.control.send(ClearPrefixes())


def test_two_engines_agree(worker: Worker) -> None:
    prompt = chat(words(9, 100))
    here = worker.run(prompt, sampling=WARM, seed=5, max_tokens=12)
    with EngineUnderTest(demo_model(), slots=2, context_size=512) as other:
        there = other.attach()
        assert there.model.fingerprint == worker.model.fingerprint
        assert there.run(prompt, sampling=WARM, seed=5, max_tokens=12).text == here.text


@pytest.mark.parametrize("length", [1, 2, 9, 10, 33, 34, 64, 65, 66, 129, 130])
def test_prompts_around_chunk_boundaries(worker: Worker, length: int) -> None:
    tokens = [(1000 + 37 * i) % 40000 for i in range(length)]
    first = worker.run(tokens, max_tokens=6, ignore_eos=True)
    again = worker.run(tokens, max_tokens=6, ignore_eos=True)
    assert first.text == again.text
    usage = again.usages[0]
    assert usage.prompt_tokens == length
    boundaries = [0, 8, 16, 24, 32, 64, 128]
    assert usage.cached_tokens == max(b for b in boundaries if b <= max(length - 2, 0))
    assert usage.completion_tokens == 6


# ------------------------------------------------------------------ many, shared, cached


def test_64_requests_on_8_slots_complete(engine: EngineUnderTest, worker: Worker) -> None:
    numbers = [worker.submit(chat(f"Tell me about the number {i}."), max_tokens=8, seed=i, sampling=WARM,
                             principal=(ALICE, BOB)[i % 2]) for i in range(64)]  # fmt: skip
    answers = worker.finish(numbers, timeout=600)
    assert all(answer.failed is None and answer.finishes[0] in ("stop", "length") for answer in answers)
    engine.wait_until_idle()


def test_three_choices_share_the_prompt(worker: Worker) -> None:
    answer = worker.run(chat(words(21, 150)), num_choices=3, sampling=Sampling(temperature=1.0), seed=40, max_tokens=12,
                        cache_prompt=False)  # fmt: skip
    assert set(answer.finishes) == {0, 1, 2}
    assert answer.usages[0].cached_tokens == 0
    assert answer.usages[1].cached_tokens == answer.usages[2].cached_tokens >= 64
    for index in range(3):
        alone = worker.run(chat(words(21, 150)), sampling=Sampling(temperature=1.0), seed=40 + index, max_tokens=12,
                           cache_prompt=False)  # fmt: skip
        assert alone.text == answer.texts[index]


def test_a_prefix_is_not_shared_between_principals(worker: Worker) -> None:
    prompt = chat(words(33, 120))
    carol, dave = b"c" * 16, b"d" * 16  # who asked nothing yet: not even the template's beginning is theirs
    assert worker.run(prompt, principal=carol).usages[0].cached_tokens == 0
    assert worker.run(prompt, principal=dave).usages[0].cached_tokens == 0
    assert worker.run(prompt, principal=carol, cache_salt=b"x").usages[0].cached_tokens == 0
    assert worker.run(prompt, principal=carol, cache_prompt=False).usages[0].cached_tokens == 0
    assert worker.run(prompt, principal=carol).usages[0].cached_tokens >= 64
    assert worker.run(prompt, principal=dave).usages[0].cached_tokens >= 64


def test_cleared_prefixes_are_gone(engine: EngineUnderTest, worker: Worker) -> None:
    prompt = chat(words(34, 120))
    worker.run(prompt)
    engine.control.send(ClearPrefixes(principal=ALICE))
    assert engine.ping().stats is not None
    assert worker.run(prompt).usages[0].cached_tokens == 0


# ------------------------------------------------------------------ text


def test_stop_strings_are_cut_whatever_the_tokens(worker: Worker) -> None:
    prompt = chat("Write the letters and some words, slowly.")
    whole = worker.run(prompt, max_tokens=40).text
    assert len(whole) > 30
    for start in range(5, 25, 3):
        for size in (1, 2, 5):
            stop = whole[start : start + size]
            answer = worker.run(prompt, max_tokens=40, stop=[stop, "\u0000never"])
            assert answer.text == whole[: whole.index(stop)]
            assert answer.finishes[0] == "stop"


def test_emoji_and_cjk_arrive_whole(worker: Worker) -> None:
    vocabulary_text = "Repeat: 😀🎉漢字仮名👩‍👩‍👧"
    prepared = worker.prepare(vocabulary_text, want_tokens=True)
    tokens = worker.answers[prepared].prepared.tokens  # type: ignore[union-attr]
    assert tokens is not None
    for token in tokens[-14:-4]:  # tokens that are parts of code points, forced one after the other
        answer = worker.run(
            "x", sampling=Sampling(temperature=1.0, logit_bias={token: 100.0}), max_tokens=7, seed=1
        )
        worker.channel.send(Detokenize(request=9000 + token, tokens=[token] * 7))
        worker.wait(lambda number=9000 + token: number in worker.detokenized)
        assert answer.text == worker.detokenized[9000 + token].decode("utf-8", "replace")


def test_logprobs_stand_for_the_text(worker: Worker) -> None:
    answer = worker.run(chat("Say hello."), max_tokens=10, top_logprobs=3)
    found = answer.logprobs[0]
    assert b"".join(item.token for item in found).decode() == answer.text
    for item in found:
        assert len(item.top) == 3
        assert item.logprob <= 0
        assert item.top[0][1] == pytest.approx(item.logprob)  # greedy takes the most likely
        assert [p for _, p in item.top] == sorted((p for _, p in item.top), reverse=True)
    stop = answer.text[len(found[0].token) + 1 :][:3]
    cut = worker.run(chat("Say hello."), max_tokens=10, top_logprobs=0, stop=[stop])
    reported = b"".join(item.token for item in cut.logprobs.get(0, [])).decode()
    assert cut.text.startswith(reported)
    assert len(cut.logprobs.get(0, [])) < len(found)


def test_min_tokens_and_ignore_eos_hold_the_end_back(worker: Worker) -> None:
    prompt = chat("Say only the word yes.")
    assert worker.run(prompt, max_tokens=24, ignore_eos=True).usages[0].completion_tokens == 24
    held = worker.run(prompt, max_tokens=40, min_tokens=20)
    assert held.usages[0].completion_tokens >= 20


def test_the_context_ends_with_length(worker: Worker) -> None:
    tokens = [1000] * 500
    answer = worker.run(tokens, max_tokens=1000, ignore_eos=True)
    assert answer.finishes[0] == "length"
    assert answer.usages[0].completion_tokens == 12
    worker.prepare([1000] * 511)
    number = worker.prepare([1000] * 512)
    failed = worker.answers[number].failed
    assert failed is not None
    assert (failed.code, "512" in failed.message) == ("context_length_exceeded", True)


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"sampling": Sampling(grammar="root ::= (")}, "grammar"),
        ({"sampling": Sampling(grammar='root ::= "a"{5,2}')}, "grammar"),
        ({"sampling": Sampling(grammar="root ::= " + "(" * 30000)}, "grammar"),
        ({"sampling": Sampling(logit_bias={49152: 1.0})}, "logit_bias"),
        ({"sampling": Sampling(logit_bias={(1 << 31) - 1: 1.0})}, "logit_bias"),
    ],
)
def test_what_the_model_cannot_do_is_refused(worker: Worker, options: dict[str, object], param: str) -> None:
    answer = worker.run("hello", **options)
    assert answer.failed is not None
    assert (answer.failed.code, answer.failed.param) == ("invalid_value", param)
    assert worker.run("hello", max_tokens=2).finishes[0] == "length"


def test_a_grammar_shapes_the_answer(worker: Worker) -> None:
    answer = worker.run(
        chat("Is water wet?"), sampling=Sampling(temperature=1.0, grammar='root ::= "yes" | "no"'), seed=3
    )
    assert answer.text in ("yes", "no")
    assert answer.finishes[0] == "stop"
    held = worker.run(
        "x", sampling=Sampling(temperature=1.0, grammar='root ::= "yes"'), ignore_eos=True, seed=3
    )
    assert (held.text, held.finishes[0]) == ("yes", "stop")


@pytest.mark.parametrize("tokens", [[49152], [0, 1 << 30], [1]])
def test_ids_outside_of_the_vocabulary_or_control_ids_are_refused(worker: Worker, tokens: list[int]) -> None:
    answer = worker.answers[worker.prepare(tokens)]
    assert answer.failed is not None
    assert answer.failed.code == "invalid_value"


def test_start_without_prepare_and_a_number_in_use(worker: Worker) -> None:
    worker.answers[777] = Answer()
    worker.channel.send(Start(request=777, sampling=GREEDY, max_tokens=1))
    worker.wait(lambda: worker.answers[777].failed)
    assert worker.answers[777].failed.code == "engine_failed"  # type: ignore[union-attr]
    number = worker.prepare("hello")
    worker.channel.send(Prepare(request=number, principal=ALICE, prompt=TextPrompt(text="again")))
    worker.wait(lambda: worker.answers[number].failed)


def test_queue_bounds_refuse_with_the_right_code() -> None:
    with EngineUnderTest(
        demo_model(), slots=1, context_size=4096, max_queue=3, max_queue_per_user=2
    ) as engine:
        worker = engine.attach()
        running = worker.submit("hello", max_tokens=4000, ignore_eos=True)
        worker.wait(lambda: worker.answers[running].times)
        waiting = [worker.submit("hello", max_tokens=1) for _ in range(2)]
        over = worker.submit("hello", max_tokens=1)
        worker.wait(lambda: worker.answers[over].failed)
        assert worker.answers[over].failed.code == "rate_limit_exceeded"  # type: ignore[union-attr]
        other = worker.submit("hello", principal=BOB, max_tokens=1)
        total = worker.submit("hello", principal=b"c" * 16, max_tokens=1)
        worker.wait(lambda: worker.answers[total].failed)
        failed = worker.answers[total].failed
        assert failed is not None
        assert failed.code == "overloaded"
        assert failed.retry_after is not None
        worker.cancel(running)
        worker.finish([*waiting, other])
        late = worker.submit("hello", max_tokens=4000, ignore_eos=True, timeout_seconds=0.3)
        worker.finish([late])
        assert worker.answers[late].failed.code == "deadline_exceeded"  # type: ignore[union-attr]
        engine.wait_until_idle()


# ------------------------------------------------------------------ leaving and dying


def test_cancel_makes_room_for_who_waits(engine: EngineUnderTest, worker: Worker) -> None:
    numbers = [worker.submit(f"Story {i}:", max_tokens=400, ignore_eos=True) for i in range(8)]
    worker.wait(lambda: all(worker.answers[n].times for n in numbers))
    late = worker.submit("Another:", max_tokens=1)
    worker.cancel(numbers[0])
    worker.finish([late])
    assert 0 not in worker.answers[numbers[0]].finishes
    for number in numbers[1:]:
        worker.cancel(number)
    engine.wait_until_idle()


def test_a_killed_worker_frees_everything_it_had(engine: EngineUnderTest, worker: Worker) -> None:
    doomed = engine.attach()
    numbers = [doomed.submit("Story:", max_tokens=400, ignore_eos=True) for _ in range(12)]
    doomed.wait(lambda: any(doomed.answers[n].times for n in numbers))
    mine = worker.submit("hello", max_tokens=6, ignore_eos=True, principal=BOB)
    doomed.close()
    assert worker.finish([mine])[0].usages[0].completion_tokens == 6
    engine.wait_until_idle()


def test_a_long_prompt_is_prepared_beside_running_streams(worker: Worker) -> None:
    stream = worker.submit("Once upon a time", max_tokens=120, ignore_eos=True)
    worker.wait(lambda: len(worker.answers[stream].times) >= 10)
    times = worker.answers[stream].times
    usual = max(b - a for a, b in itertools.pairwise(times[2:]))
    seen = len(times)
    begin = time.perf_counter()
    huge = worker.prepare("word " * 200_000, wait=False)
    worker.wait(lambda: worker.answers[huge].failed, 300)
    preparing = time.perf_counter() - begin
    during = times[seen - 1 :]
    assert worker.answers[huge].failed.code == "context_length_exceeded"  # type: ignore[union-attr]
    worst = max((b - a for a, b in itertools.pairwise(during)), default=0.0)
    assert worst < max(10 * usual, 0.5, preparing / 2)  # one that stood still would have stood still all the while
    worker.cancel(stream)


HOSTILE = [
    b"\xff" * 64,
    b"\x00\x00\x00\xff\x00" + b"x" * 100,  # longer than any frame may be
    b"\x05\x00\x00\x00\x03hello",  # descriptors announced that never came
    b"\x01\x00\x00\x00\x00\xc1",  # not msgpack
    bytes(encode_frame({"type": "start", "request": 1, "sampling": {"temperature": 99.0}, "max_tokens": 1})),
    bytes(
        encode_frame(
            {"type": "prepare", "request": -1, "principal": b"x", "prompt": {"type": "text", "text": "a"}}
        )
    ),
    bytes(encode_frame({"type": "step", "events": []})),
    bytes(encode_frame({"type": "cancel", "request": 1, "extra": True})),
]


@pytest.mark.parametrize("data", HOSTILE)
def test_hostile_frames_cost_only_their_connection(
    engine: EngineUnderTest, worker: Worker, data: bytes
) -> None:
    other = engine.attach()
    other.sock.sendall(data)
    with pytest.raises(ConnectionResetError):
        other.take()
    assert worker.run("hello", max_tokens=2).finishes[0] == "length"


def test_unknown_requests_are_ignored(worker: Worker) -> None:
    for number in (0, 5555, (1 << 63) - 1):
        worker.cancel(number)
    assert worker.run("hello", max_tokens=1).finishes[0] == "length"


def test_a_worker_that_does_not_read_stops_nobody(engine: EngineUnderTest, worker: Worker) -> None:
    deaf = engine.attach()
    deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    prompt = TokenPrompt(tokens=[1000] * 500)
    for number in range(1000, 1400):  # answers of 500 ids each, never read
        deaf.channel.send(Prepare(request=number, principal=BOB, prompt=prompt, want_tokens=True))
    assert worker.run("hello", max_tokens=8, ignore_eos=True).usages[0].completion_tokens == 8
    deaf.close()


def test_drain_lets_running_work_finish_and_exits_zero() -> None:
    with EngineUnderTest(demo_model(), slots=2, context_size=1024) as engine:
        worker = engine.attach()
        number = worker.submit("hello", max_tokens=300, ignore_eos=True)  # long enough to be running at the next question
        worker.wait(lambda: worker.answers[number].times)
        engine.control.send(Drain(grace_seconds=300))
        assert engine.ping().stats is not None
        refused = worker.prepare("no more")
        assert worker.answers[refused].failed.code == "shutting_down"  # type: ignore[union-attr]
        assert worker.finish([number])[0].usages[0].completion_tokens == 300
        assert engine.process.wait(60) == 0


def test_sigterm_drains_and_a_lost_supervisor_ends_the_engine() -> None:
    with EngineUnderTest(demo_model(), slots=1, context_size=256) as engine:
        engine.terminate()
        assert engine.process.wait(60) == 0
    with EngineUnderTest(demo_model(), slots=1, context_size=256) as engine:
        engine.control.close()
        assert engine.process.wait(60) == 0


def test_flash_attention_is_exact_alone_and_in_company() -> None:
    """A lone row over a long context is computed in another order by llama.cpp unless it has company."""
    with EngineUnderTest(demo_model(), slots=4, context_size=512, flash_attention="on") as engine:
        worker = engine.attach()
        tokens = [(3000 + 41 * i) % 40000 for i in range(246)]
        options = {"sampling": WARM, "seed": 4, "max_tokens": 24, "ignore_eos": True}
        alone = worker.run(tokens, **options)
        others = noise(worker, 2)
        among = worker.submit(tokens, **options)
        worker.finish([among, *others])
        assert worker.answers[among].text == alone.text
        assert worker.answers[among].usages[0].cached_tokens == 192
