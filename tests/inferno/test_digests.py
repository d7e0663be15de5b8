"""Digests through a descriptor, and sha256sum files beside a model."""

import hashlib
import os
from pathlib import Path

import pytest
import xxhash

from inferno import digests


@pytest.mark.parametrize("size", [0, 1, 131071, 131072, 131073, 400000])
def test_digests_equal_the_libraries_own(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    path = tmp_path / "x"
    path.write_bytes(data)
    with path.open("rb") as file:
        file.seek(size // 2)
        assert digests.sha256_fd(file.fileno()) == hashlib.sha256(data).hexdigest()
        assert digests.corruption_check_fd(file.fileno()) == xxhash.xxh3_128(data).hexdigest()
        both = hashlib.sha256(data).hexdigest(), xxhash.xxh3_128(data).hexdigest()
        assert digests.digests_fd(file.fileno()) == both
        assert file.tell() == size // 2


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "PROGRESS_BYTES", 200_000)
    path = tmp_path / "x"
    path.write_bytes(bytes(1_000_000))
    told: list[tuple[int, int]] = []
    with path.open("rb") as file:
        digests.sha256_fd(file.fileno(), lambda done, size: told.append((done, size)))
    assert told[-1] == (1_000_000, 1_000_000)
    assert len(told) == 5
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(1_000_000))

    class Shrinking:
        def update(self, data: memoryview) -> None:
            os.truncate(path, 10)

        def hexdigest(self) -> str:
            return ""

    with path.open("rb") as file, pytest.raises(digests.FileShrank):
        digests._run((Shrinking(),), file.fileno(), None)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.gguf.sha256", "{d}"), ("m.gguf.sha256", "{d}\n"), ("m.gguf.sha256", "{d}  m.gguf\n"),
        ("m.gguf.sha256sum", "{d} *./dir/m.gguf\n"), ("SHA256SUMS", "{z}  other\n{d}  m.gguf\n"),
        ("sha256sums.txt", "# note\n{D}  m.gguf\n"),
    ],
)
def test_sum_files_are_understood(tmp_path: Path, name: str, text: str) -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    (tmp_path / name).write_text(text.format(d=digest, D=digest.upper(), z="0" * 64))
    assert digests.sum_file_digest(tmp_path / "m.gguf") == digest


@pytest.mark.parametrize("text", ["", "not a digest  m.gguf", "0" * 63 + "  m.gguf", "0" * 64 + "  other.gguf"])
def test_other_lines_say_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "SHA256SUMS").write_text(text)
    assert digests.sum_file_digest(tmp_path / "m.gguf") is None
