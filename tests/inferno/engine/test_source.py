"""Swapping, overwriting and truncating a file before, between and after verification and load.

Each ends in a refusal or in the verified bytes. The stand-in for the load is what the loader does: it opens the source's
own path again and reads.
"""

import fcntl
import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from inferno_native import gguf
from inferno_native.gguf_report import GgufError

from inferno.digests import sha256_fd
from inferno.engine.source import ModelSource, make_source
from inferno.engine.verification import verify_files
from inferno.modelfile import open_model
from tests.conftest import DATA


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    subprocess.run([sys.executable, str(DATA / "gguf_corpus" / "make_corpus.py"), str(folder)], check=True,
                   capture_output=True)
    return folder


@pytest.fixture
def model(corpus: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    shutil.copy(corpus / "tiny_llama_q8.gguf", path)
    os.utime(path, ns=(1, 1))
    return path


def swap(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(b"GGUF but another file")
    other.rename(path)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(200)
        file.write(b"\xff" * 64)


def truncate(path: Path) -> None:
    os.truncate(path, 100)


ATTACKS = [swap, overwrite, truncate]
Attack = Callable[[Path], None]


def load(source: ModelSource) -> bytes:
    with open(source.paths[0], "rb") as file:
        return file.read()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("mode", ["copy", "direct"])
def test_change_between_open_and_verification(model: Path, attack: Attack, mode: str) -> None:
    """sec_173."""
    original = model.read_bytes()
    with make_source([open_model(model)], mode) as source:  # type: ignore[arg-type]
        attack(model)
        try:
            gguf.verify_fds(source.fds)
            loaded = load(source)
            source.recheck()
        except GgufError:
            assert mode == "direct"
        else:
            assert loaded == original


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("mode", ["copy", "direct"])
def test_change_between_verification_and_load(model: Path, attack: Attack, mode: str) -> None:
    """sec_173."""
    original = model.read_bytes()
    with make_source([open_model(model)], mode) as source:  # type: ignore[arg-type]
        verdict = verify_files(source.fds, take_digest=True)
        attack(model)
        loaded = load(source)
        if mode == "copy":
            source.recheck()
            assert loaded == original
        else:
            with pytest.raises(GgufError, match="file-changed"):
                source.recheck()
        assert verdict.facts.architecture == "llama"


@pytest.mark.parametrize("attack", ATTACKS)
def test_change_after_the_load_does_not_reach_a_copy(model: Path, attack: Attack) -> None:
    with make_source([open_model(model)], "copy") as source:
        before = sha256_fd(source.fds[0])
        attack(model)
        assert sha256_fd(source.fds[0]) == before
        source.recheck()


@pytest.mark.parametrize("attack", [overwrite, truncate])
def test_change_before_the_open_is_seen_by_the_digest(model: Path, attack: Attack) -> None:
    """sec_173."""
    with model.open("rb") as file:
        digest = sha256_fd(file.fileno())
    attack(model)
    with make_source([open_model(model)]) as source, pytest.raises(GgufError) as caught:
        verify_files(source.fds, expected_sha256=[digest])
    assert caught.value.reason == "checksum-mismatch"


def test_a_copy_cannot_be_written_by_anyone(model: Path) -> None:
    with make_source([open_model(model)], "copy") as source:
        fd = source.fds[0]
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 1)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 1 << 20)
        again = os.open(source.paths[0], os.O_RDWR)
        with pytest.raises(PermissionError):
            os.pwrite(again, b"x", 0)
        os.close(again)
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == 0xF


def test_auto_copies_what_fits_and_says_what_stays_open_otherwise(model: Path) -> None:
    size = model.stat().st_size
    with make_source([open_model(model)], "auto", memory_bytes=size) as source:
        assert (source.mode, source.notes) == ("copy", [])
    model.chmod(0o666)
    with make_source([open_model(model)], "auto", memory_bytes=size - 1) as source:
        assert source.mode == "direct"
        assert any("anyone may write" in note for note in source.notes)
    with pytest.raises(GgufError) as caught:
        make_source([open_model(model)], "copy", memory_bytes=size - 1)
    assert caught.value.reason == "out-of-memory"


def test_a_file_that_changes_under_the_copy_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.sendfile

    def sendfile(out: int, source: int, offset: int, count: int) -> int:
        done = real(out, source, offset, min(count, 512))
        if offset == 512:
            overwrite(model)
        return done

    monkeypatch.setattr(os, "sendfile", sendfile)
    with pytest.raises(GgufError) as caught:
        make_source([open_model(model)], "copy")
    assert caught.value.reason == "file-changed"


def test_descriptors_are_closed_whatever_happens(model: Path) -> None:
    gc.collect()  # what earlier tests left to it is not ours to count
    before = len(os.listdir("/proc/self/fd"))
    for mode in ("copy", "direct"):
        make_source([open_model(model)], mode).close()  # type: ignore[arg-type]
    with pytest.raises(GgufError):
        make_source([open_model(model)], "copy", memory_bytes=1)
    assert len(os.listdir("/proc/self/fd")) == before


def test_shards_are_one_source(corpus: Path) -> None:
    paths = sorted(corpus.glob("split_two-*.gguf"))
    with make_source([open_model(path) for path in paths], "copy") as source:
        assert len(source.paths) == 2
        assert verify_files(source.fds).facts.tensor_count == 11
