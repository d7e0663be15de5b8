"""One worker over a fake engine, shared by the tests of a module that only call it."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from .harness import WorkerUnderTest, running_worker


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerUnderTest]:
    with running_worker() as running:
        yield running


@pytest.fixture
def client(worker: WorkerUnderTest) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{worker.base_url}/v1", api_key="unused", max_retries=0) as made:
        yield made
