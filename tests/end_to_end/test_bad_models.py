"""Forty bad model files, handed to a running server by configuration and by `models add`, while a client streams."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.end_to_end.harness import GENEROUS, eventually, running

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
CORPUS = Path(__file__).parent.parent / "data" / "gguf_corpus" / "make_corpus.py"
NUM_FILES = 40
PROMPT = [{"role": "user", "content": "Tell a long story about a lighthouse."}]


def bad_cases(folder: Path) -> list[dict]:
    """The files that end a process which trusts llama.cpp's own parser, then others, of one file each."""
    subprocess.run([sys.executable, str(CORPUS), str(folder)], check=True, capture_output=True)
    cases = json.loads((folder / "manifest.json").read_text())["cases"]
    bad = [case for case in cases if case["verdict"] == "invalid" and len(case["files"]) == 1 and case["size"] != [None]]
    stages = ("ref", "ref_data", "ref_vocab", "ref_load", "ref_run")
    bad.sort(key=lambda case: not any(case[stage] in ("crash", "hang") for stage in stages))
    return bad[:NUM_FILES]


def test_forty_bad_files_disturb_no_stream(tmp_path):
    cases = bad_cases(tmp_path / "corpus")
    assert len(cases) == NUM_FILES
    paths = {case["name"]: tmp_path / "corpus" / case["files"][0] for case in cases}
    config = GENEROUS + "".join(f'\n[models."{name}"]\npath = "{path}"\n' for name, path in paths.items())
    with running(tmp_path, config=config) as server:
        client = server.client(server.create_key()["key"])

        def answer() -> str:
            stream = client.chat.completions.create(
                model="demo", messages=PROMPT, max_tokens=48, temperature=0, stream=True, extra_body={"ignore_eos": True}
            )
            chunks = list(stream)
            assert chunks[-1].choices[0].finish_reason == "length"
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

        expected = answer()
        answers: list[str] = []
        stop = threading.Event()

        def stream_on() -> None:
            while not stop.is_set():
                answers.append(answer())

        streaming = threading.Thread(target=stream_on)
        streaming.start()
        try:
            for case in cases:
                command = ["models", "add", str(paths[case["name"]]), "--name", f"added-{case['name']}"]
                done = subprocess.run(
                    [sys.executable, "-m", "inferno.cli", *command, "--config", str(server.config)],
                    env=server.environment, capture_output=True, text=True, timeout=120, check=False,
                )  # fmt: skip
                assert done.returncode == 1, (case["name"], done.stdout, done.stderr)
                assert done.stderr.strip(), case["name"]
                assert "Traceback" not in done.stderr
        finally:
            stop.set()
            streaming.join()
        assert answers  # the first of them streamed meanwhile, however slow the machine
        assert set(answers) == {expected}
        assert [model.id for model in client.models.list()] == ["demo"]
        # by configuration: each was refused by its engine before anything native saw it, none crashed

        def refusals() -> dict[str, str]:
            return {record["target"]: record["reason"].split(":")[0] for record in server.events("model.refused")}

        assert eventually(lambda: set(paths) <= set(refusals()), 120)
        refused = refusals()
        assert "load-failed" not in {refused[name] for name in paths}
        assert server.events("engine.crash") == []
        by_command = {target for target in refused if target.startswith("added-")}
        assert by_command == {f"added-{name}" for name in paths}
