"""The compiled verifier against the sample files: the corpus, the architectures, the real vocabularies and models."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inferno_native import gguf
from inferno_native.gguf_report import POLICY_REASONS, REASONS, GgufError

from tests.conftest import DATA, shared

# Reasons that only a compile or a trial run of the template can give; tests/inferno/engine/test_verification.py has them.
TEMPLATE_RUN = {
    "template-syntax", "template-too-complex", "template-forbidden-attribute", "template-forbidden-statement",
    "template-unbounded-loop", "template-memory-bomb",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    subprocess.run([sys.executable, str(DATA / "gguf_corpus" / "make_corpus.py"), str(folder)], check=True,
                   capture_output=True)
    return folder


@pytest.fixture(scope="module")
def archs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archs")
    subprocess.run([sys.executable, str(DATA / "gguf_archs" / "expand.py"), str(folder)], check=True,
                   capture_output=True)
    return folder


def verify_paths(paths: list[Path], **options: Any) -> str:
    fds = [os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC) for path in paths]
    try:
        gguf.verify_fds(fds, **options)
    except GgufError as error:
        return error.reason if error.reason in REASONS else f"unknown reason {error.reason}"
    finally:
        for fd in fds:
            os.close(fd)
    return "ok"


def cases(corpus: Path) -> Iterator[dict[str, Any]]:
    yield from json.loads((corpus / "manifest.json").read_text())["cases"]


def test_every_corpus_case_has_its_verdict_and_reason(corpus: Path) -> None:
    wrong = []
    seen = 0
    for case in cases(corpus):
        if case["reason"] in TEMPLATE_RUN:
            continue
        seen += 1
        got = verify_paths([corpus / name for name in case["files"]], profile=case["profile"])
        if got != case["reason"] and got not in case["also"]:
            wrong.append((case["name"], case["reason"], got))
    assert wrong == []
    assert seen == 217


def test_policy_faults_are_marked_and_may_be_waived(corpus: Path) -> None:
    waived = 0
    for case in cases(corpus):
        if case["verdict"] == "valid" or case["reason"] in TEMPLATE_RUN:
            continue
        fds = [os.open(corpus / name, os.O_RDONLY | os.O_NONBLOCK) for name in case["files"]]
        try:
            with pytest.raises(GgufError) as caught:
                gguf.verify_fds(fds, profile=case["profile"])
            assert caught.value.policy == case["policy"], case["name"]
            if case["name"] == "tokens_empty":
                # waiving the empty list leaves a vocabulary that cannot spell a single byte
                with pytest.raises(GgufError, match="byte-tokens-missing"):
                    gguf.verify_fds(fds, allow=POLICY_REASONS)
            elif case["policy"]:
                report = gguf.verify_fds(fds, profile=case["profile"], allow=POLICY_REASONS)
                assert caught.value.reason in report.policy
                waived += 1
            elif caught.value.reason in POLICY_REASONS:
                # a form of the fault that the reference dies of: the waiver must not help
                with pytest.raises(GgufError):
                    gguf.verify_fds(fds, profile=case["profile"], allow={caught.value.reason})
        finally:
            for fd in fds:
                os.close(fd)
    assert waived == 19


def test_a_fault_that_is_not_policy_cannot_be_waived(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF")
    with path.open("rb") as file, pytest.raises(ValueError, match="bad-magic"):
        gguf.verify_fd(file.fileno(), allow={"bad-magic"})


def test_all_architectures_are_accepted(archs: Path) -> None:
    paths = sorted(archs.glob("*.gguf"))
    assert len(paths) == 128
    assert [p.name for p in paths if verify_paths([p]) != "ok"] == []


@pytest.mark.parametrize("name", ["bert-bge", "gpt-2", "llama-spm", "phi-3", "qwen2"])
def test_real_vocabularies_are_accepted(name: str) -> None:
    assert verify_paths([shared(f"vocabs/ggml-vocab-{name}.gguf")]) == "ok"


def test_facts_of_a_real_model() -> None:
    with shared("models/all-MiniLM-L6-v2.Q8_0.gguf").open("rb") as file:
        facts = gguf.verify_fd(file.fileno()).facts
        assert file.tell() == 0
    assert (facts.architecture, facts.block_count, facts.embedding_length, facts.vocab_size) == ("bert", 6, 384, 30522)
    assert (facts.quantization, facts.tensor_count, facts.tensor_types) == ("Q8_0", 101, {"F32": 64, "Q8_0": 37})
    assert facts.special_texts["bos"] == "[CLS]"
    assert facts.parameter_count == 22565376


def test_every_reason_of_the_core_has_a_sentence() -> None:
    assert set(gguf.SLUGS.values()) <= set(REASONS)
    assert len(set(gguf.SLUGS.values())) == len(gguf.SLUGS)
    assert set(REASONS) >= POLICY_REASONS


def test_size_limit_and_odd_descriptors(tmp_path: Path, corpus: Path) -> None:
    sound = corpus / "tiny_llama_q8.gguf"
    assert verify_paths([sound], max_bytes=sound.stat().st_size) == "ok"
    assert verify_paths([sound], max_bytes=sound.stat().st_size - 1) == "file-too-large"
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert verify_paths([fifo]) == "not-a-regular-file"
    assert verify_paths([Path("/dev/null")]) == "not-a-regular-file"


def test_block_sizes_match_the_linked_library() -> None:
    # in a process of its own: this one must not load libllama
    code = (
        "import llama_cpp, ctypes, pathlib\n"
        "from inferno_native import gguf\n"
        "folder = pathlib.Path(llama_cpp.__file__).parent / 'lib'\n"
        "gguf.check_block_sizes(ctypes.CDLL(str(next(folder.glob('*ggml-base*')))))\n"
        "gguf.check_block_sizes(llama_cpp.llama_cpp._lib)\n"
        "print(len(gguf.block_sizes()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "35"


def test_block_sizes_that_differ_are_refused() -> None:
    class Function:
        def __init__(self, table: dict[int, int]) -> None:
            self.table = table

        def __call__(self, kind: int) -> int:
            return self.table.get(kind, 0)

    ours = gguf.block_sizes()
    library = {
        "ggml_blck_size": Function({kind: block[0] for kind, block in ours.items()}),
        "ggml_type_size": Function({kind: block[1] for kind, block in ours.items()} | {2: 20}),
    }
    with pytest.raises(GgufError, match="Q4_0"):
        gguf.check_block_sizes(library)  # type: ignore[arg-type]
    library["ggml_type_size"] = Function({kind: block[1] for kind, block in ours.items()})
    gguf.check_block_sizes(library)  # type: ignore[arg-type]
    library["ggml_blck_size"].table[4] = 32
    with pytest.raises(GgufError, match="tensor type 4"):
        gguf.check_block_sizes(library)  # type: ignore[arg-type]


def test_memory_stays_small_whatever_the_header_claims(tmp_path: Path) -> None:
    path = tmp_path / "claims.gguf"
    with path.open("wb") as file:
        # 2^30 keys in a sparse file of 64 GiB: refused before anything is kept
        file.write(b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1 << 30).to_bytes(8, "little"))
        file.truncate(1 << 36)
    assert verify_paths([path]) == "metadata-too-large"


@pytest.mark.parametrize("content", [
    struct.pack("<IQ", 8, 900_000_000),  # one string
    struct.pack("<IIQ", 9, 0, 900_000_000),  # an array of bytes
    struct.pack("<IIQ", 9, 8, 100_000_000),  # an array of empty strings
])
def test_metadata_beyond_the_cap_is_refused_before_memory_is_taken(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "long.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"x" + content)
        file.truncate(1 << 30)
    code = (
        "import os, resource, sys\n"
        "from inferno_native import gguf\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    gguf.verify_fd(os.open(sys.argv[1], os.O_RDONLY))\n"
        "except gguf.GgufError as error:\n    print(error.reason, end=' ')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    reason, grown = done.stdout.split()
    assert reason == "metadata-too-large"
    assert int(grown) < 270 * 1024  # KiB: never more than the cap


def test_what_stands_in_the_place_of_the_magic_is_shown_as_letters(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_bytes(b"<html>" + bytes(64))
    with open(tmp_path / "page.gguf", "rb") as file, pytest.raises(GgufError) as caught:
        gguf.verify_fd(file.fileno())
    assert str(caught.value) == "bad-magic: the file does not start with GGUF: wanted b'GGUF', had b'<htm' (at byte 0)"
