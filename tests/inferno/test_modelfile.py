"""Opening model files: links, pipes, folders, and what lies below the models folder."""

import os
from pathlib import Path

import pytest
from inferno_native.gguf_report import GgufError

from inferno.modelfile import Stamp, concerns, find_models, open_below, open_model, open_real


def reason(function: object, *arguments: object) -> str:
    try:
        os.close(function(*arguments))  # type: ignore[operator]
    except GgufError as error:
        return error.reason
    return "ok"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    (root / "sub").mkdir(parents=True)
    (root / "a.gguf").write_bytes(b"a")
    (root / "sub" / "b.gguf").write_bytes(b"b")
    (tmp_path / "outside.gguf").write_bytes(b"secret")
    (root / "link.gguf").symlink_to("../outside.gguf")
    (root / "inside.gguf").symlink_to("a.gguf")
    (root / "out").symlink_to("..")
    os.mkfifo(root / "pipe.gguf")
    return root


def test_odd_paths_are_refused_at_once(folder: Path) -> None:
    """sec_128: pipes, folders and devices are no models, and opening them waits for nobody."""
    assert reason(open_model, folder / "pipe.gguf") == "not-a-regular-file"
    assert reason(open_model, folder) == "not-a-regular-file"
    assert reason(open_model, "/dev/zero") == "not-a-regular-file"
    assert reason(open_model, folder / "none.gguf") == "file-not-found"
    assert reason(open_model, folder / "a.gguf" / "x") == "file-not-found"
    assert reason(open_model, "a\0b") == "file-not-found"
    assert reason(open_model, "x" * 5000) == "file-not-found"
    loop = folder / "loop.gguf"
    loop.symlink_to("loop.gguf")
    assert reason(open_model, loop) == "not-a-regular-file"


def test_a_configured_path_may_be_a_link_as_in_a_download_cache(folder: Path) -> None:
    assert reason(open_model, folder / "link.gguf") == "ok"


@pytest.mark.parametrize(
    ("relative", "expected"),
    [
        ("a.gguf", "ok"), ("sub/b.gguf", "ok"), ("link.gguf", "not-a-regular-file"),
        ("out/outside.gguf", "file-not-found"), ("../outside.gguf", "file-not-found"), ("", "file-not-found"),
        ("sub/../a.gguf", "file-not-found"), ("/etc/passwd", "file-not-found"), ("sub", "not-a-regular-file"),
        ("pipe.gguf", "not-a-regular-file"), ("a\0.gguf", "file-not-found"),
    ],
)
def test_below_the_models_folder_no_link_is_followed(folder: Path, relative: str, expected: str) -> None:
    """sec_126."""
    got = reason(open_below, folder, relative)
    assert got == expected or (expected != "ok" and got in ("file-not-found", "not-a-regular-file"))


def test_an_engine_opens_only_what_has_no_link_in_it(folder: Path) -> None:
    real = folder.resolve()
    assert reason(open_real, real / "sub" / "b.gguf") == "ok"
    for path in (real / "link.gguf", real / "out" / "outside.gguf", "a.gguf", "", real / "pipe.gguf", f"{real}/../x"):
        assert reason(open_real, path) in ("not-a-regular-file", "file-not-found")


def test_only_what_stays_inside_is_found(folder: Path) -> None:
    assert list(find_models(folder)) == ["a.gguf", "inside.gguf", "pipe.gguf", "sub/b.gguf"]


def test_stamp_changes_with_the_file(folder: Path) -> None:
    path = folder / "a.gguf"
    with path.open("r+b") as file:
        before = Stamp.of(file.fileno())
        assert Stamp.of(file.fileno()) == before
        file.write(b"longer")
        file.flush()
        assert Stamp.of(file.fileno()) != before


def test_concerns_name_who_else_may_write(folder: Path) -> None:
    path = folder / "a.gguf"
    path.chmod(0o444)
    with path.open("rb") as file:
        assert concerns(file.fileno()) == []
        path.chmod(0o666)
        assert len(concerns(file.fileno())) == 2
