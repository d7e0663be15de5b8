"""Public prefixes: what their ids are, and that they alone cross principals, in an engine process on tiny models."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import pytest

from inferno.engine.public import public_prefix
from inferno.errors import EngineError
from inferno.messages import ChatPrompt, ClearPrefixes, TextPrompt
from tests.inferno.engine.client import ALICE, BOB, EngineUnderTest, Worker
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.e2e
_AROUND = 1 + len("system\n") + 1 + len("\n") + 1 + len("user\n")  # tokens that the template puts around a system message
SYSTEM = "You are the helper of a small shop for paper lamps. " * 6
WHOLE = (len(SYSTEM) + _AROUND) // 64 * 64


def build(prompt: ChatPrompt | TextPrompt) -> list[int]:
    """A byte tokenizer with a template of its own."""
    if isinstance(prompt, TextPrompt):
        return list(prompt.text.encode())
    ids: list[int] = []
    for message in prompt.messages:
        ids += [300, *message["content"].encode(), 301]
    return [*ids, 300]


def test_the_ids_are_what_every_conversation_with_it_begins_with() -> None:
    assert public_prefix(build, "shop", has_template=True) == array("i", [300, *b"shop", 301, 300])
    assert public_prefix(build, "shop", has_template=False) == array("i", list(b"shop"))


def test_a_template_that_refuses_gives_none() -> None:
    def refuse(_: object) -> list[int]:
        raise EngineError("template_failed", "No system role.")

    assert public_prefix(refuse, "shop", has_template=True) == array("i")


@pytest.fixture(scope="module", params=["llama-dense", "gemma3-dense", "mamba-dense"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineUnderTest]:
    path = write_tiny_model(tmp_path_factory.mktemp("public") / "tiny.gguf", request.param, "Q8_0")
    with EngineUnderTest(path, context_size=1024, public_prefixes=[SYSTEM, "x" * 2000]) as running:
        yield running


@pytest.fixture
def worker(engine: EngineUnderTest) -> Worker:
    return engine.attach()


def chat(system: str, user: str) -> ChatPrompt:
    return ChatPrompt(messages=[{"role": "system", "content": system}, {"role": "user", "content": user}])


def cached(worker: Worker, prompt: ChatPrompt, principal: bytes, **options: object) -> tuple[int, str]:
    answer = worker.run(prompt, principal=principal, max_tokens=4, ignore_eos=True, **options)
    return answer.usages[0].cached_tokens, answer.text


def test_a_public_prefix_is_reused_by_every_principal_and_nothing_else_is(engine: EngineUnderTest, worker: Worker) -> None:
    assert worker.model.settings["public_prefixes"] == "1 of 2"
    question = "What does the green one cost? " * 10
    cold = cached(worker, chat(SYSTEM, question), ALICE, cache_prompt=False)
    first = cached(worker, chat(SYSTEM, question), ALICE)
    assert (cold[0], first[0]) == (0, WHOLE)
    assert first[1] == cold[1]  # the same bytes with the hit
    assert cached(worker, chat(SYSTEM, question), ALICE)[0] > WHOLE  # her own continuation
    assert cached(worker, chat(SYSTEM, question), BOB)[0] == WHOLE  # the public part only
    assert cached(worker, chat(SYSTEM, question), BOB, cache_salt=b"x")[0] == WHOLE
    private = "Glass. " + SYSTEM
    template_only = 8  # what is put before any system text is in the public prefix too; some memories cannot be cut there
    assert cached(worker, chat(private, question), ALICE)[0] in (0, template_only)
    assert cached(worker, chat(private, question), BOB)[0] in (0, template_only)


def test_it_survives_the_emptying_of_the_store(engine: EngineUnderTest, worker: Worker) -> None:
    cached(worker, chat(SYSTEM, "Anything else? " * 10), ALICE)
    engine.control.send(ClearPrefixes())
    stats = engine.ping().stats
    assert stats is not None
    assert stats.prefix_entries == 1
    assert cached(worker, chat(SYSTEM, "Anything else? " * 10), BOB)[0] == WHOLE
