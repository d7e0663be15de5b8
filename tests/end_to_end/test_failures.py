"""What clients see when parts die under load, when models are bad, and when the server is told to stop."""

import asyncio
import os
import signal
import time

import httpx
import openai
import pytest

from tests.end_to_end.harness import GENEROUS, RunningServer, running
from tests.models import demo_model

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
PROMPT = [{"role": "user", "content": "Tell a long story about a lighthouse."}]


async def stream_one(client: openai.AsyncOpenAI, tokens: int, first: asyncio.Event | None = None) -> str:
    """Return `whole`, or how the stream failed; any other failure is the test's."""
    try:
        stream = await client.chat.completions.create(
            model="demo", messages=PROMPT, max_tokens=tokens, stream=True, extra_body={"ignore_eos": True}
        )
        count = 0
        async for chunk in stream:
            count += 1
            if first is not None and count == 3:
                first.set()
            if chunk.choices and chunk.choices[0].finish_reason:
                return "whole"
        return "cut"
    except openai.InternalServerError as error:
        return f"status:{error.status_code}:{error.code}"
    except openai.APIConnectionError:
        return "connection"
    except openai.APIError as error:
        return f"event:{error.code}"
    except httpx.HTTPError:
        return "connection"


async def kill_under_load(server: RunningServer, module: str, number: int) -> tuple[list[str], float, list[str]]:
    """Stream, kill one process of `module`; return the outcomes, the seconds until served again, outcomes after."""
    key = server.create_key()["key"]
    async with server.async_client(key) as client:
        first = asyncio.Event()
        running_streams = [asyncio.create_task(stream_one(client, 200, first)) for _ in range(6)]
        await asyncio.wait_for(first.wait(), 60)
        victims = server.processes(module)
        assert victims, f"no process of {module}"
        os.kill(victims[0], number)
        start = time.monotonic()
        assert httpx.get(server.url + "/healthz", timeout=5).status_code == 200
        while await stream_one(client, 4) != "whole":  # beside those that may still run
            assert time.monotonic() - start < 60, server.output()
            await asyncio.sleep(0.05)
        served = time.monotonic() - start
        outcomes = await asyncio.gather(*running_streams)
        after = await asyncio.gather(*[stream_one(client, 8) for _ in range(8)])
    return outcomes, served, after


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_a_killed_engine_costs_only_its_streams(tmp_path, workers, number):
    with running(tmp_path, workers=workers) as server:
        outcomes, served, after = asyncio.run(kill_under_load(server, "inferno.engine.main", number))
        assert all(o.startswith(("event:engine", "status:503")) or o == "whole" for o in outcomes), outcomes
        assert any(o != "whole" for o in outcomes)
        assert served < 5 + server.start_seconds  # new ones within 5 s and the load time
        assert after == ["whole"] * 8


def test_a_killed_worker_is_replaced_and_the_others_serve_on(tmp_path):
    with running(tmp_path, workers=4) as server:
        outcomes, served, after = asyncio.run(kill_under_load(server, "inferno.server.worker", signal.SIGKILL))
        assert all(o in {"whole", "connection"} for o in outcomes), outcomes
        assert served < 5 + server.start_seconds
        assert after == ["whole"] * 8
        assert len(server.processes("inferno.server.worker")) == 4


def test_a_killed_template_child_is_replaced(tmp_path):
    with running(tmp_path) as server:
        outcomes, _, after = asyncio.run(
            kill_under_load(server, "inferno.engine.template_child", signal.SIGKILL)
        )
        assert outcomes == ["whole"] * 6
        assert after == ["whole"] * 8


def test_sigterm_lets_running_answers_finish_and_ends_with_0(tmp_path):
    with running(tmp_path, workers=2) as server:
        key = server.create_key()["key"]

        async def main() -> list[str]:
            async with server.async_client(key) as client:
                first = asyncio.Event()
                streams = [asyncio.create_task(stream_one(client, 60, first)) for _ in range(4)]
                await asyncio.wait_for(first.wait(), 60)
                stopping = asyncio.create_task(asyncio.to_thread(server.stop))
                outcomes = await asyncio.gather(*streams)
                assert await stopping == 0
                return outcomes

        outcomes = asyncio.run(main())
        assert outcomes.count("whole") >= 1
        assert all(o == "whole" or o.startswith("status:503") or o == "connection" for o in outcomes), outcomes


def test_without_a_model_the_server_starts_and_says_so(tmp_path):
    server = RunningServer(tmp_path, config=GENEROUS)
    try:
        server.start(ready=False)
        assert httpx.get(server.url + "/readyz").status_code == 503
        client = server.client(server.create_key()["key"])
        assert list(client.models.list()) == []
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="demo", messages=PROMPT)
        assert caught.value.status_code in {404, 503}
    finally:
        assert server.stop() == 0


def bad_files(folder):
    """Yield (name, path) of files that must be refused clearly, without a hang or a crash."""
    whole = demo_model().read_bytes()
    (folder / "page.gguf").write_text("<!DOCTYPE html><html><body>Not found</body></html>")
    (folder / "empty.gguf").write_bytes(b"")
    (folder / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (folder / "head.gguf").write_bytes(whole[:20])
    (folder / "folder.gguf").mkdir()
    os.mkfifo(folder / "pipe.gguf")
    return ["page", "empty", "cut", "head", "folder", "pipe", "absent"]


def test_bad_model_files_are_refused_while_a_good_one_is_served(tmp_path):
    """sec_175, sec_128: the server lives on."""
    bad = tmp_path / "bad"
    bad.mkdir()
    names = bad_files(bad)
    config = GENEROUS + "".join(f'\n[models.{name}]\npath = "{bad / name}.gguf"\n' for name in names)
    with running(tmp_path, config=config) as server:
        client = server.client(server.create_key()["key"])
        answer = client.chat.completions.create(model="demo", messages=PROMPT, max_tokens=4)
        assert answer.choices[0].finish_reason
        assert [model.id for model in client.models.list()] == ["demo"]
        output = server.output()
        for name in names:
            assert name in output
