"""The official client, sync and async, against a real worker process over a fake engine."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest

from inferno.messages import Cancel, Start

from .harness import WorkerUnderTest, running_worker, until

TEXTS = [
    "plain",
    "héllo wörld",
    "日本語テキスト",
    "👨‍👩‍👧‍👦 family 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "mixed 日本 😀 end",
    'a\nb\t"quoted" \\ </s>',
]


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_models(client: openai.OpenAI) -> None:
    listed = client.models.list()
    assert [model.id for model in listed.data] == ["fake"]
    assert client.models.retrieve("fake").object == "model"


def test_model_with_a_slash_is_found_by_its_exact_name() -> None:
    with running_worker(models=("org/repo",)) as worker:
        made = openai.OpenAI(base_url=f"{worker.base_url}/v1", api_key="unused", max_retries=0)
        assert made.models.retrieve("org/repo").id == "org/repo"
        assert httpx.get(f"{worker.base_url}/v1/models/org/repo", timeout=60).status_code == 404
        assert httpx.get(f"{worker.base_url}/v1/models/org%2Frepo", timeout=60).status_code == 200
        assert (
            httpx.get(f"{worker.base_url}/v1/models/org%2F..%2Frepo", timeout=60).json()["error"]["code"]
            == "model_not_found"
        )
        made.close()


@pytest.mark.parametrize("text", TEXTS)
def test_joined_deltas_equal_the_whole_answer(client: openai.OpenAI, text: str) -> None:
    whole = client.chat.completions.create(model="fake", messages=user(text))
    assert whole.choices[0].message.content == text
    assert whole.choices[0].finish_reason == "stop"
    chunks = list(client.chat.completions.create(model="fake", messages=user(text), stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    completion = client.completions.create(model="fake", prompt=text, max_tokens=200)
    parts = client.completions.create(model="fake", prompt=text, max_tokens=200, stream=True)
    assert "".join(part.choices[0].text for part in parts) == completion.choices[0].text == text


def test_stream_order_and_fields(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="fake", messages=user("abc"), stream=True, n=2, stream_options={"include_usage": True}
        )
    )
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].object == "chat.completion.chunk"
    assert [chunk.choices[0].index for chunk in chunks[:2]] == [0, 1]
    assert all(chunk.choices[0].delta.role == "assistant" for chunk in chunks[:2])
    assert chunks[-1].choices == []
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 8
    assert usage.total_tokens == usage.prompt_tokens + 8
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert all(chunk.usage is None for chunk in chunks[:-1])
    finished = [chunk for chunk in chunks[:-1] if chunk.choices[0].finish_reason]
    assert sorted(chunk.choices[0].index for chunk in finished) == [0, 1]
    assert all(chunk.choices[0].delta.content is None for chunk in finished)
    without = list(client.chat.completions.create(model="fake", messages=user("abc"), stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in without)


def test_stream_on_the_wire_ends_with_done_and_the_body(worker: WorkerUnderTest) -> None:
    body = {"messages": user("ab"), "stream": True, "stream_options": {"include_usage": True}}
    with httpx.stream("POST", f"{worker.base_url}/v1/chat/completions", json=body, timeout=60) as answer:
        text = answer.read().decode()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-request-id"].startswith("req_")
    events = text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") for event in events[:-1])
    assert all('"usage":null' in event for event in events[:-3])
    assert '"choices":[],"usage":{' in events[-3]


def test_n_answers(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=user("!noise"), n=2, seed=5, max_tokens=12)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert texts[0] != texts[1]
    again = client.chat.completions.create(model="fake", messages=user("!noise"), n=2, seed=5, max_tokens=12)
    assert [choice.message.content for choice in again.choices] == texts
    assert all(choice.finish_reason == "length" for choice in answer.choices)


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=user("aé"), logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [entry.bytes for entry in logprobs.content] == [[97], [0xC3], [0xA9]]
    assert logprobs.content[0].token == "a"
    assert [entry.token for entry in logprobs.content[0].top_logprobs] == ["a", "?"]
    chunks = list(
        client.chat.completions.create(
            model="fake", messages=user("aé"), logprobs=True, top_logprobs=2, stream=True
        )
    )
    entries = [
        entry
        for chunk in chunks
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content or []
    ]
    assert [entry.bytes for entry in entries] == [[97], [0xC3], [0xA9]]
    none = client.chat.completions.create(model="fake", messages=user("a"))
    assert none.choices[0].logprobs is None


def test_legacy_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt="abc", logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "b", "c"]
    assert logprobs.text_offset == [0, 1, 2]
    assert logprobs.token_logprobs == [-0.25] * 3
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0] == {"a": -0.25, "?": -1.5}
    offsets: list[int] = []
    for chunk in client.completions.create(model="fake", prompt="abc", logprobs=1, stream=True):
        if chunk.choices[0].logprobs:
            offsets.extend(chunk.choices[0].logprobs.text_offset or [])
    assert offsets == [0, 1, 2]


@pytest.mark.parametrize("stop", ["xyz", ["no", "xyz"], ["xy"]])
def test_stop_never_leaks(client: openai.OpenAI, stop: Any) -> None:
    answer = client.chat.completions.create(model="fake", messages=user("before xyz after"), stop=stop)
    assert answer.choices[0].message.content == "before "
    assert answer.choices[0].finish_reason == "stop"
    chunks = client.chat.completions.create(
        model="fake", messages=user("before xyz after"), stop=stop, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "before "


def test_prompt_shapes(client: openai.OpenAI) -> None:
    several = client.completions.create(model="fake", prompt=["one", "two"], n=2)
    assert [(choice.index, choice.text) for choice in several.choices] == [
        (0, "one"),
        (1, "one"),
        (2, "two"),
        (3, "two"),
    ]
    assert client.completions.create(model="fake", prompt=[104, 105]).choices[0].text == "hi"
    lists = client.completions.create(model="fake", prompt=[[104], [105]])
    assert [choice.text for choice in lists.choices] == ["h", "i"]
    joined = {0: "", 1: ""}
    for chunk in client.completions.create(model="fake", prompt=["one", "two"], stream=True):
        joined[chunk.choices[0].index] += chunk.choices[0].text
    assert joined == {0: "one", 1: "two"}


def test_tokenize_and_detokenize(worker: WorkerUnderTest) -> None:
    url = f"{worker.base_url}/v1"
    assert httpx.post(f"{url}/tokenize", json={"prompt": "hi"}, timeout=60).json() == {
        "tokens": [256, 104, 105],
        "count": 3,
    }
    chat = httpx.post(f"{url}/tokenize", json={"model": "fake", "messages": user("hi")}, timeout=60).json()
    assert chat["count"] == len(chat["tokens"]) > 3
    assert httpx.post(f"{url}/detokenize", json={"tokens": [104, 105]}, timeout=60).json() == {"text": "hi"}
    refused = httpx.post(f"{url}/detokenize", json={"tokens": [258]}, timeout=60)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tokens")


ERRORS = [
    ("context_length_exceeded", openai.BadRequestError),
    ("template_failed", openai.BadRequestError),
    ("rate_limit_exceeded", openai.RateLimitError),
    ("overloaded", openai.InternalServerError),
    ("engine_failed", openai.InternalServerError),
    ("model_not_found", openai.NotFoundError),
    ("insufficient_permissions", openai.PermissionDeniedError),
    ("request_too_large", openai.APIStatusError),
]


@pytest.mark.parametrize(("code", "kind"), ERRORS)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_before_the_first_token_are_statuses(
    client: openai.OpenAI, code: str, kind: type[openai.APIStatusError], stream: bool
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(model="fake", messages=user(f"!fail {code}"), stream=stream)
    assert caught.value.code == code
    assert caught.value.request_id is not None
    if caught.value.status_code in (429, 503):
        assert int(caught.value.response.headers["retry-after"]) >= 1


def test_an_error_after_the_first_token_is_an_event(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="fake", messages=user("!late engine_failed"), stream=True)
    seen = ""
    with pytest.raises(openai.APIError) as caught:
        for chunk in stream:
            seen += chunk.choices[0].delta.content or ""
    assert seen == "!l"
    assert caught.value.code == "engine_failed"
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="fake", messages=user("!late engine_failed"))


def test_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=user("x"))
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_a_message_of_ours_is_taken_back(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=user("one"))
    history: list[Any] = [*user("one"), answer.choices[0].message.model_dump(), *user("two")]
    assert client.chat.completions.create(model="fake", messages=history).choices[0].message.content == "two"
    with client.chat.completions.stream(model="fake", messages=user("three")) as stream:
        final = stream.get_final_completion()
    history = [*user("three"), final.choices[0].message.model_dump(), *user("four")]
    assert client.chat.completions.create(model="fake", messages=history).choices[0].message.content == "four"


def test_a_client_that_leaves_cancels_its_work() -> None:
    with running_worker() as worker:
        engine = worker.engines["fake"]
        made = openai.OpenAI(base_url=f"{worker.base_url}/v1", api_key="unused", max_retries=0)
        stream = made.chat.completions.create(model="fake", messages=user("!slow " + "x" * 500), stream=True)
        next(iter(stream))
        stream.close()
        until(lambda: engine.num_running == 0)
        assert len(engine.logged(Cancel)) == 1
        with pytest.raises(openai.APITimeoutError):
            made.chat.completions.create(model="fake", messages=user("!hang"), timeout=3)
        until(lambda: len(engine.logged(Cancel)) == 2 and engine.num_running == 0)
        assert made.models.list().data
        made.close()


def test_engine_death_costs_its_requests_only() -> None:
    with running_worker() as worker:
        made = openai.OpenAI(base_url=f"{worker.base_url}/v1", api_key="unused", max_retries=0)
        with pytest.raises(openai.InternalServerError) as caught:
            made.chat.completions.create(model="fake", messages=user("!die now"))
        assert caught.value.code == "engine_failed"
        worker.engine_gone()
        with pytest.raises(openai.InternalServerError) as caught:
            made.chat.completions.create(model="fake", messages=user("x"))
        assert caught.value.code == "engine_restarting"
        assert caught.value.response.headers["retry-after"] == "3"
        worker.engine_up()
        assert (
            made.chat.completions.create(model="fake", messages=user("x")).choices[0].message.content == "x"
        )
        made.close()


def test_async_client_with_many_streams(worker: WorkerUnderTest) -> None:
    async def one(made: openai.AsyncOpenAI, index: int) -> bool:
        text = f"stream {index} 日本語 😀 " * 5
        stream = await made.chat.completions.create(model="fake", messages=user(text), stream=True)
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return "".join(parts) == text

    async def run() -> list[bool]:
        async with openai.AsyncOpenAI(
            base_url=f"{worker.base_url}/v1", api_key="unused", max_retries=0
        ) as made:
            return await asyncio.gather(*(one(made, index) for index in range(64)))

    assert all(asyncio.run(run()))


def test_each_start_has_its_settlement(worker: WorkerUnderTest, client: openai.OpenAI) -> None:
    engine = worker.engines["fake"]
    before = len(engine.logged(Start))
    client.chat.completions.create(model="fake", messages=user("x"))
    assert len(engine.logged(Start)) == before + 1
    assert engine.num_running == 0


def test_priority_and_the_callers_share_reach_the_engine(worker: WorkerUnderTest, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="fake", messages=user("x"), extra_body={"priority": 7})
    start = worker.engines["fake"].logged(Start)[-1]
    assert (start.priority, start.weight) == (7, 1.0)
