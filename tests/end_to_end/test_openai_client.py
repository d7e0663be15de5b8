"""The official client is the judge: models, chat, streams, completions, choices, logprobs, stop, seed, errors."""

import asyncio

import openai
import pytest

from tests.end_to_end.harness import RunningServer

pytestmark = pytest.mark.e2e
HAIKU = [{"role": "user", "content": "Write a haiku about the sea."}]


@pytest.fixture(scope="session")
def client(server: RunningServer, key: str) -> openai.OpenAI:
    return server.client(key)


def test_models_are_listed_and_found(client):
    names = [model.id for model in client.models.list()]
    assert names == ["demo"]
    assert client.models.retrieve("demo").object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody/nothing")
    assert caught.value.code == "model_not_found"


def test_chat_answers_with_usage(client):
    answer = client.chat.completions.create(model="demo", messages=HAIKU, max_tokens=24, seed=1)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in {"stop", "length"}
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens <= 24
    assert answer.system_fingerprint
    assert answer._request_id


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_a_stream_joined_equals_the_answer_and_ends_with_usage(client, temperature):
    options = {"model": "demo", "messages": HAIKU, "max_tokens": 32, "seed": 7, "temperature": temperature}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **options))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_without_stream_options_no_usage_chunk_comes(client):
    chunks = list(client.chat.completions.create(model="demo", messages=HAIKU, max_tokens=4, stream=True))
    assert all(chunk.choices for chunk in chunks)


def test_completions_plain_and_streamed(client):
    options = {"model": "demo", "prompt": "Once upon a time", "max_tokens": 16, "seed": 3}
    whole = client.completions.create(**options)
    parts = [chunk.choices[0].text for chunk in client.completions.create(stream=True, **options)]
    assert whole.object == "text_completion"
    assert "".join(parts) == whole.choices[0].text


def test_two_choices_differ_and_are_indexed(client):
    answer = client.chat.completions.create(model="demo", messages=HAIKU, max_tokens=24, n=2, temperature=1.5, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content != answer.choices[1].message.content


def test_logprobs_stand_beside_each_token(client):
    answer = client.chat.completions.create(
        model="demo", messages=HAIKU, max_tokens=8, temperature=0, logprobs=True, top_logprobs=5
    )
    entries = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == answer.choices[0].message.content
    for entry in entries:
        assert len(entry.top_logprobs) == 5
        assert entry.logprob == pytest.approx(max(top.logprob for top in entry.top_logprobs))
        assert bytes(entry.bytes).decode(errors="replace") == entry.token


def test_a_stop_string_ends_the_answer_and_never_shows(client):
    options = {"model": "demo", "messages": HAIKU, "max_tokens": 40, "temperature": 0}
    full = client.chat.completions.create(**options).choices[0].message.content
    stop = full[9:14]
    cut = client.chat.completions.create(stop=stop, **options)
    assert cut.choices[0].message.content == full[: full.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    streamed = "".join(
        chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(stop=stop, stream=True, **options)
    )
    assert streamed == cut.choices[0].message.content


def test_the_same_seed_gives_the_same_answer(client):
    options = {"model": "demo", "messages": HAIKU, "max_tokens": 24, "temperature": 1.0}
    first, second, other = (
        client.chat.completions.create(seed=seed, **options).choices[0].message.content for seed in (11, 11, 12)
    )
    assert first == second
    assert first != other


def test_context_length_exceeded_names_both_numbers(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "sea " * 3000}], max_tokens=8)
    assert caught.value.code == "context_length_exceeded"
    assert "1024" in caught.value.message


def test_reaching_the_end_of_the_context_is_length(client):
    answer = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "sea " * 900}], extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens <= 1024


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("temperature", 2.5, "invalid_value"),
        ("max_tokens", 0, "invalid_value"),
        ("no_such_field", 1, "unknown_parameter"),
        ("audio", {"voice": "alloy"}, "unsupported_parameter"),
        ("logit_bias", {"99999999": 1}, "invalid_value"),
        ("stop", "", "invalid_value"),
    ],
)
def test_bad_fields_are_refused_by_name(client, field, value, code):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=HAIKU, extra_body={field: value})
    assert caught.value.code == code
    assert field in (caught.value.param or "")


def test_a_wrong_key_and_a_wrong_model(server, client):
    with pytest.raises(openai.AuthenticationError) as caught:
        server.client("inf_wrong").models.list()
    assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=HAIKU)


def test_64_parallel_streams_on_8_slots_are_whole(server, key):
    async def main() -> list[str]:
        async with server.async_client(key) as client:

            async def one(number: int) -> str:
                stream = await client.chat.completions.create(
                    model="demo", stream=True, max_tokens=24, seed=number, extra_body={"ignore_eos": True},
                    messages=[{"role": "user", "content": f"Count from {number} in French, with emoji 🌊."}],
                    stream_options={"include_usage": True},
                )  # fmt: skip
                text, usage = "", None
                async for chunk in stream:
                    usage = chunk.usage or usage
                    text += "".join(choice.delta.content or "" for choice in chunk.choices)
                assert usage.completion_tokens == 24
                return text

            return await asyncio.gather(*[one(number) for number in range(64)])

    texts = asyncio.run(main())
    assert all(texts)
    assert "\ufffd" not in "".join(text[:-1] for text in texts)
    client = server.client(key)
    for number in (0, 31, 63):
        alone = client.chat.completions.create(
            model="demo", max_tokens=24, seed=number, extra_body={"ignore_eos": True},
            messages=[{"role": "user", "content": f"Count from {number} in French, with emoji 🌊."}],
        )  # fmt: skip
        assert alone.choices[0].message.content == texts[number]
