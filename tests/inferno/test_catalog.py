"""Names, digests, waivers and verdicts of installed models; the registry file under crashes and rivals."""

import datetime
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from inferno_native.gguf_report import GgufError

from inferno.catalog import Catalog, CatalogError, check_name, name_of, shard_paths
from inferno.config import ModelEntry, Models
from inferno.digests import FileDigests, corruption_check_fd, sha256_fd
from inferno.engine.verification import verify_files
from inferno.errors import StartError
from inferno.modelfile import Stamp
from inferno.registry import MAX_VERDICTS, Content, KnownVerdict, Registry
from tests.conftest import DATA

NOON = datetime.datetime(2026, 1, 2, 12, 0, 0, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    subprocess.run([sys.executable, str(DATA / "gguf_corpus" / "make_corpus.py"), str(folder)], check=True,
                   capture_output=True)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir(mode=0o700)
    return path


def catalog(folder: Path, **options: object) -> Catalog:
    return Catalog(Models(dir=str(folder), **options), now=lambda: NOON)  # type: ignore[arg-type]


def test_add_records_digest_size_facts_and_time(corpus: Path, folder: Path) -> None:
    path = corpus / "tiny_llama_q8.gguf"
    entry = catalog(folder).add(path, verify_files, name="tiny")
    with path.open("rb") as file:
        assert entry.sha256 == [sha256_fd(file.fileno())]
    assert (entry.paths, entry.size_bytes) == ([str(path.resolve())], path.stat().st_size)
    assert (entry.facts.architecture, entry.facts.quantization, entry.added_at) == (
        "llama", "Q8_0", "2026-01-02T12:00:00Z")
    found = catalog(folder).find("tiny")
    assert (found.origin, found.sha256) == ("added", entry.sha256)
    mode = (folder / "registry.json").stat().st_mode & 0o777
    assert mode == 0o600


def test_a_refused_file_leaves_no_trace(corpus: Path, folder: Path) -> None:
    with pytest.raises(GgufError, match="block-count-invalid"):
        catalog(folder).add(corpus / "block_count_0.gguf", verify_files)
    assert catalog(folder).models() == {}
    assert not (folder / "registry.json").exists()


def test_a_waiver_is_recorded_and_only_for_what_was_found(corpus: Path, folder: Path) -> None:
    path = corpus / "context_length_0.gguf"
    with pytest.raises(GgufError, match="context-length-invalid"):
        catalog(folder).add(path, verify_files)
    entry = catalog(folder).add(path, verify_files, allow=["context-length-invalid", "trailing-data"])
    assert list(entry.allow) == ["context-length-invalid"]
    assert catalog(folder).find("context_length_0").allow == ["context-length-invalid"]


def test_inp_6_names_are_exact_and_never_paths(corpus: Path, folder: Path) -> None:
    shutil.copy(corpus / "tiny_llama_q8.gguf", folder / "a.gguf")
    books = catalog(folder)
    assert books.find("a").origin == "found"
    for name in ("A", "a.gguf", "./a", "../models/a", "", "a\0", "a/", str(folder / "a.gguf")):
        with pytest.raises(CatalogError):
            books.find(name)
    for name in ("", "default", "../x", "a b", "é", "x" * 129, "a/", "a\n", "-a"):
        with pytest.raises(CatalogError):
            check_name(name)
    assert check_name("org/model:7b-Q4_K.M") == "org/model:7b-Q4_K.M"


def test_a_name_is_given_once(corpus: Path, folder: Path) -> None:
    books = catalog(folder, entries={"fixed": ModelEntry(path="/x.gguf")})
    books.add(corpus / "tiny_llama_q8.gguf", verify_files, name="m")
    for name in ("m", "fixed"):
        with pytest.raises(CatalogError, match="taken"):
            books.add(corpus / "tiny_llama_f16.gguf", verify_files, name=name)


def test_configured_goes_before_added_before_found(corpus: Path, folder: Path) -> None:
    shutil.copy(corpus / "tiny_llama_q8.gguf", folder / "m.gguf")
    assert catalog(folder).find("m").origin == "found"
    catalog(folder).add(folder / "m.gguf", verify_files, name="n")
    assert sorted(catalog(folder).models()) == ["n"]  # the same file is not listed twice
    configured = catalog(folder, entries={"n": ModelEntry(path=str(corpus / "tiny_llama_f16.gguf"), sha256="AB" * 32)})
    assert (configured.find("n").origin, configured.find("n").sha256) == ("configured", ["ab" * 32])


def test_sec_links_out_of_the_models_folder_are_not_followed(corpus: Path, folder: Path, tmp_path: Path) -> None:
    """sec_126."""
    (folder / "out.gguf").symlink_to(corpus / "tiny_llama_q8.gguf")
    shutil.copy(corpus / "tiny_llama_q8.gguf", folder / "real.gguf")
    (folder / "in.gguf").symlink_to("real.gguf")
    books = catalog(folder)
    assert set(books.models()) == {"real", "in"}
    for fd in books.find("in").open():
        os.close(fd)
    # swapped for a link after it was found: the open itself refuses
    model = books.find("real")
    (folder / "real.gguf").unlink()
    (folder / "real.gguf").symlink_to(corpus / "tiny_llama_q8.gguf")
    with pytest.raises(GgufError, match="not-a-regular-file"):
        model.open()


def test_a_download_cache_of_links_is_accepted_by_its_real_path(corpus: Path, folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    names = sorted(path.name for path in corpus.glob("split_two-*.gguf"))
    for index, name in enumerate(names):
        shutil.copy(corpus / name, blobs / f"blob{index}")
        (snapshot / name).symlink_to(f"../../blobs/blob{index}")
    entry = catalog(folder).add(snapshot / names[0], verify_files)
    assert entry.name == "split_two"
    assert entry.paths == [str(blobs / "blob0"), str(blobs / "blob1")]
    assert len(entry.sha256) == 2


def test_shard_names() -> None:
    assert [p.name for p in shard_paths("/d/m-00001-of-00003.gguf")] == [
        "m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"]
    for alone in ("m.gguf", "m-00002-of-00003.gguf", "m-00001-of-00001.gguf", "m-00001-of-99999.gguf"):
        assert shard_paths(alone) == [Path(alone)]
    assert name_of("/d/m-00001-of-00003.gguf") == "m"
    assert name_of("a.b.gguf") == "a.b"


def test_require_checksum_refuses_what_is_not_pinned(corpus: Path, folder: Path) -> None:
    shutil.copy(corpus / "tiny_llama_q8.gguf", folder / "found.gguf")
    catalog(folder).add(corpus / "tiny_llama_f16.gguf", verify_files, name="pinned")
    strict = catalog(folder, require_checksum=True)
    assert strict.expected_digests(strict.find("pinned")) == strict.find("pinned").sha256
    with pytest.raises(GgufError, match="require_checksum"):
        strict.expected_digests(strict.find("found"))
    assert catalog(folder).expected_digests(catalog(folder).find("found")) == []


def test_size_limit(corpus: Path, folder: Path) -> None:
    small = catalog(folder, max_model_size_gb=1e-6)
    with pytest.raises(GgufError, match="file-too-large"):
        small.add(corpus / "tiny_llama_q8.gguf", verify_files)


def test_a_verdict_belongs_to_the_state_of_the_file(corpus: Path, folder: Path) -> None:
    path = folder / "m.gguf"
    shutil.copy(corpus / "tiny_llama_q8.gguf", path)
    books = catalog(folder)
    books.add(path, verify_files, name="m")

    def known(books: Catalog) -> bool:
        model = books.find("m")
        fds = model.open()
        try:
            files = books.known_files(model)
            return [files.get(Stamp.of(fd).text()) for fd in fds] == [corruption_check_fd(fd) for fd in fds]
        finally:
            for fd in fds:
                os.close(fd)

    assert known(books)
    assert not known(catalog(folder, verify="always"))
    os.utime(path)
    assert not known(books)
    path.rename(folder / "other")
    shutil.copy(corpus / "tiny_llama_q8.gguf", path)
    assert not known(books)  # the same bytes under the same path, but another file


def test_a_verdict_given_with_a_waiver_needs_the_waiver(folder: Path) -> None:
    books = catalog(folder)
    stamp = Stamp(1, 2, 3, 4, 5)
    books.remember([stamp], "valid", [FileDigests("ab", "f0")], ["trailing-data"])
    model = msgspec.structs.replace(
        Catalog(Models(dir=str(folder), entries={"m": ModelEntry(path="/m.gguf")})).find("m"), allow=["trailing-data"])
    assert books.known_files(model) == {stamp.text(): "f0"}
    assert books.known_files(msgspec.structs.replace(model, sha256=["ab"])) == {stamp.text(): "f0"}
    assert books.known_files(msgspec.structs.replace(model, sha256=["cd"])) == {}
    assert books.known_files(msgspec.structs.replace(model, allow=[])) == {}
    assert catalog(folder, verify="always").known_files(model) == {}
    books.remember([stamp], "trailing-data", [], [])
    assert books.known_files(model) == {}


def test_remove_forgets_the_name_and_keeps_the_file(corpus: Path, folder: Path) -> None:
    path = corpus / "tiny_llama_q8.gguf"
    books = catalog(folder)
    books.add(path, verify_files, name="m")
    books.remove("m")
    assert books.models() == {}
    assert path.exists()
    with pytest.raises(CatalogError, match="no model"):
        books.remove("m")
    shutil.copy(path, folder / "found.gguf")
    with pytest.raises(CatalogError, match="was not added"):
        books.remove("found")


def test_two_writers_lose_nothing(folder: Path) -> None:
    def write(number: int) -> None:
        registry = Registry(folder)
        for i in range(10):
            key = f"{number}-{i}"
            registry.update(lambda content, key=key: msgspec.structs.replace(  # type: ignore[misc]
                content, verdicts=content.verdicts | {key: KnownVerdict(verdict="valid", verifier=1)}))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Registry(folder).read().verdicts) == 40
    assert sorted(p.name for p in folder.iterdir()) == ["registry.json", "registry.lock"]


def test_a_crash_while_writing_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(folder)
    registry.update(lambda content: msgspec.structs.replace(
        content, verdicts={"a": KnownVerdict(verdict="valid", verifier=1)}))
    before = registry.path.read_bytes()

    def broken(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(StartError, match="No space"):
        registry.update(lambda content: Content())
    assert registry.path.read_bytes() == before
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"format": 2}', b'{"models": {"a": 1}}', b"\xff", b"[" * 100000])
def test_a_damaged_registry_is_an_error_not_a_guess(folder: Path, data: bytes) -> None:
    (folder / "registry.json").write_bytes(data)
    with pytest.raises(StartError):
        Registry(folder).read()


def test_a_registry_that_others_may_write_is_refused(folder: Path) -> None:
    registry = Registry(folder)
    registry.update(lambda content: content)
    registry.path.chmod(0o666)
    with pytest.raises(StartError, match="chmod"):
        registry.read()
    registry.path.unlink()
    registry.path.symlink_to("/etc/hostname")
    with pytest.raises(StartError):
        registry.read()


def test_old_verdicts_go_first(folder: Path) -> None:
    many = {str(i): KnownVerdict(verdict="valid", verifier=1) for i in range(MAX_VERDICTS + 10)}
    content = Registry(folder).update(lambda content: msgspec.structs.replace(content, verdicts=many))
    assert len(content.verdicts) == MAX_VERDICTS
    assert "0" not in content.verdicts
    assert json.loads((folder / "registry.json").read_bytes())["format"] == 1
