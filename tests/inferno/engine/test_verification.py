"""The whole check, templates included, over the corpus."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from inferno_native.gguf_report import POLICY_REASONS, GgufError

from inferno.engine.verification import digest_files, open_verified, verify_files
from inferno.modelfile import open_model
from tests.conftest import DATA


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    subprocess.run([sys.executable, str(DATA / "gguf_corpus" / "make_corpus.py"), str(folder)], check=True,
                   capture_output=True)
    return folder


def test_every_case_of_the_corpus(corpus: Path) -> None:
    wrong = []
    cases = json.loads((corpus / "manifest.json").read_text())["cases"]
    for case in cases:
        got, policy = "ok", case["policy"]
        fds: list[int] = []
        try:
            fds = [open_model(corpus / name) for name in case["files"]]
            verify_files(fds, profile=case["profile"])
        except GgufError as error:
            got, policy = error.reason, error.policy
        finally:
            for fd in fds:
                os.close(fd)
        if (got != case["reason"] and got not in case["also"]) or policy != case["policy"]:
            wrong.append((case["name"], case["reason"], got, policy))
    assert wrong == []
    assert len(cases) == 228


def test_waived_template_faults_are_reported(corpus: Path) -> None:
    fd = open_model(corpus / "template_include.gguf")
    try:
        verdict = verify_files([fd], allow=POLICY_REASONS, take_digest=True)
    finally:
        os.close(fd)
    assert verdict.policy == ("template-forbidden-statement",)
    assert len(verdict.sha256[0]) == 64
    assert verdict.seconds > 0


def test_expected_digest_of_each_shard(corpus: Path) -> None:
    fds = [open_model(path) for path in sorted(corpus.glob("split_two-*.gguf"))]
    try:
        digests = verify_files(fds, take_digest=True).sha256
        assert verify_files(fds, expected_sha256=[d.upper() for d in digests]).sha256 == digests
        with pytest.raises(GgufError) as caught:
            verify_files(fds, expected_sha256=[digests[0], "0" * 64])
        assert (caught.value.reason, caught.value.shard) == ("checksum-mismatch", 1)
    finally:
        for fd in fds:
            os.close(fd)


def test_what_an_engine_does_before_it_loads(corpus: Path, tmp_path: Path) -> None:
    path = (corpus / "tiny_llama_q8.gguf").resolve()
    source, verdict = open_verified([str(path)])
    with source:
        digest, check = digest_files(source.fds)[0]
        assert (verdict.facts.architecture, verdict.sha256) == ("llama", ())
    with pytest.raises(GgufError, match="checksum-mismatch"):
        open_verified([str(path)], sha256=["0" * 64])
    source, verdict = open_verified([str(path)], sha256=[digest], source="direct")
    with source:
        assert verdict.sha256 == (digest,)
        known = source.stamps[0].text()
    source, verdict = open_verified([str(path)], sha256=[digest], known_files={known: check})
    with source:
        assert verdict.sha256 == ()  # unchanged since its digest was checked
    # the disk changed bits, or another file is meant: SHA-256 decides
    for known_files in ({known: "0" * 32}, {"1-2-3-4-5": check}):
        source, verdict = open_verified([str(path)], sha256=[digest], known_files=known_files)
        with source:
            assert verdict.sha256 == (digest,)
    with pytest.raises(GgufError, match="checksum-mismatch"):
        open_verified([str(path)], sha256=["0" * 64], known_files={known: "0" * 32})
    with pytest.raises(GgufError, match="file-too-large"):
        open_verified([str(path)], max_bytes=10)
    link = tmp_path / "link.gguf"
    link.symlink_to(path)
    gc.collect()  # what earlier tests left to it is not ours to count
    before = len(os.listdir("/proc/self/fd"))
    for bad in (str(link), str(tmp_path / "none.gguf"), str(corpus.resolve() / "block_count_0.gguf")):
        with pytest.raises(GgufError):
            open_verified([bad])
    assert len(os.listdir("/proc/self/fd")) == before
