"""Laws of the verifier: it agrees with its slow twin on whatever it is fed, and never does more than the file has."""

import atexit
import os
import random
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferno_native import gguf
from inferno_native.gguf_report import POLICY_REASONS, GgufError

from tests.conftest import DATA
from tests.native import reference_gguf as twin
from tests.native.gguf_mutations import TELLING, mutate

LAW = settings(max_examples=150, deadline=None)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("corpus")
    subprocess.run([sys.executable, str(DATA / "gguf_corpus" / "make_corpus.py"), str(folder)], check=True,
                   capture_output=True)
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.gguf")) if path.is_file()}


SCRATCH = tempfile.TemporaryFile()  # noqa: SIM115 - one descriptor for all examples
atexit.register(SCRATCH.close)


def native(data: bytes, profile: str = "model", allow: frozenset[str] = frozenset()) -> str:
    fd = SCRATCH.fileno()
    os.ftruncate(fd, 0)
    os.pwrite(fd, data, 0)
    try:
        gguf.verify_fd(fd, profile=profile, allow=allow)
    except GgufError as error:
        inside = error.offset is None or 0 <= error.offset <= len(data) + (1 << 31)
        return error.reason if inside else f"{error.reason} at {error.offset}"
    return "ok"


def test_the_twin_agrees_on_the_corpus(corpus: dict[str, bytes]) -> None:
    differ = [(name, twin.judge(data), native(data)) for name, data in corpus.items()
              if twin.judge(data) != native(data)]
    assert differ == []
    for name in ("zero_element_tensor.gguf", "align_8.gguf", "v3_header_only.gguf"):
        assert twin.judge(corpus[name], "container") == native(corpus[name], "container") == "ok"


@pytest.mark.parametrize("name", ["tiny_llama_q8.gguf", "vocab_only_bpe.gguf", "align_8.gguf", "vocab_only_wpm.gguf"])
def test_every_cut_has_the_twins_reason(corpus: dict[str, bytes], name: str) -> None:
    data = corpus[name]
    places = [*range(0, min(len(data), 1500)), *range(1500, len(data), 97)]
    assert [(i, twin.judge(data[:i]), native(data[:i])) for i in places
            if twin.judge(data[:i]) != native(data[:i])] == []
    assert all(native(data[:i]) != "ok" for i in places)


def test_mutated_files_have_the_twins_reason(corpus: dict[str, bytes]) -> None:
    names = sorted(corpus)
    rng = random.Random(20260101)
    differ = []
    accepted = 0
    for _ in range(4000):
        name = rng.choice(names)
        data = mutate(corpus[name], rng, corpus[rng.choice(names)])
        profile = rng.choice(("model", "model", "model", "container"))
        mine, its = native(data, profile), twin.judge(data, profile)
        accepted += mine == "ok"
        if mine != its:
            differ.append((name, mine, its))
    assert differ == []
    assert accepted > 100  # the mutations are not all fatal at the first byte


@LAW
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    assert native(data) == twin.judge(data) != "ok"


@LAW
@given(st.binary(max_size=120), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.sampled_from([2, 3]))
def test_any_bytes_behind_a_good_header(data: bytes, tensors: int, keys: int, version: int) -> None:
    for counts in ((tensors, keys), (tensors % 3, keys % 3)):
        whole = b"GGUF" + struct.pack("<IQQ", version, *counts) + data
        assert native(whole, "container") == twin.judge(whole, "container")


def key(name: bytes, kind: int, content: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + content


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


ARCH = key(b"general.architecture", twin.STR, text(b"llama"))
numbers = st.sampled_from(TELLING) | st.integers(0, 2**64 - 1)


@LAW
@given(st.lists(st.tuples(st.text(min_size=1, max_size=12), st.integers(0, 255)), max_size=12))
def test_a_well_formed_file_is_accepted_whatever_its_private_keys(items: list[tuple[str, int]]) -> None:
    names = {name.encode("utf-8", "ignore").replace(b"\0", b"0") for name, _ in items} - {b""}
    body = b"".join(key(b"private." + name, twin.U8, b"\7") for name in sorted(names))
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, len(names) + 1) + ARCH + body
    assert native(data) == twin.judge(data) == "ok"


@LAW
@given(
    st.lists(numbers, max_size=4), st.integers(0, 50), numbers, st.sampled_from([8, 32, 4096]), st.integers(0, 100),
    st.booleans(),
)
def test_one_tensor_of_any_shape(
    dims: list[int], kind: int, offset: int, alignment: int, size: int, is_first: bool
) -> None:
    align = key(b"general.alignment", twin.U32, struct.pack("<I", alignment))
    table = text(b"t") + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, 0 if is_first else offset)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + ARCH + align + table
    data = head + bytes(-len(head) % alignment + size * 4)
    for profile in ("model", "container"):
        assert native(data, profile) == twin.judge(data, profile)


@LAW
@given(st.lists(st.binary(max_size=6) | st.sampled_from([b"", b"[EMPTY_0]", b"[EMPTY_1]", b"[EMPTY_01]", b"<0x00>"]), max_size=40))
def test_any_token_list(tokens: list[bytes]) -> None:
    content = struct.pack("<IQ", twin.STR, len(tokens)) + b"".join(text(token) for token in tokens)
    model = key(b"tokenizer.ggml.model", twin.STR, text(b"test"))
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, 3) + ARCH + model + key(b"tokenizer.ggml.tokens", twin.ARR, content)
    data += bytes(-len(data) % 32)
    assert native(data) == twin.judge(data)


@LAW
@given(st.binary(max_size=12))
def test_strings_are_strict_utf8(value: bytes) -> None:
    for padding in (b"", b"ascii text "):
        whole = padding + value + padding
        data = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + ARCH + key(b"x", twin.STR, text(whole))
        assert native(data) == twin.judge(data)
        expected = "string-has-nul" if b"\0" in whole else "ok" if twin.is_utf8(whole) else "string-not-utf8"
        assert native(data) == expected


@pytest.mark.parametrize("bad", [
    b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\x80", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf0\x80\x80\x80",
    b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xff", b"\x80", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98",
])
def test_overlong_forms_surrogates_and_cut_sequences(bad: bytes) -> None:
    for value in (bad, b"a" * 7 + bad, b"a" * 8 + bad + b"b" * 8, bad + b"c" * 16):
        data = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + ARCH + key(b"x", twin.STR, text(value))
        assert native(data) == "string-not-utf8"


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100])
def test_a_zero_byte_is_found_wherever_it_stands(length: int) -> None:
    for at in range(length):
        value = bytearray(b"\xc3\xa9" * length)[:length]
        value[at] = 0
        content = struct.pack("<IQ", twin.STR, 1) + text(bytes(value))
        data = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + ARCH + key(b"tokenizer.ggml.tokens", twin.ARR, content)
        assert native(data) == "string-has-nul"
        merges = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + ARCH + key(
            b"tokenizer.ggml.merges", twin.ARR, struct.pack("<IQ", twin.STR, 1) + text(bytes(value).replace(b"\0", b" ")))
        assert native(merges) == ("merge-malformed" if at == 0 else "ok")


def test_waivers_only_ever_accept_more(corpus: dict[str, bytes]) -> None:
    rng = random.Random(7)
    names = sorted(corpus)
    for _ in range(500):
        data = mutate(corpus[rng.choice(names)], rng)
        strict, lenient = native(data), native(data, allow=POLICY_REASONS)
        assert lenient == "ok" or strict != "ok"
        if strict != "ok" and strict not in POLICY_REASONS:
            assert lenient == strict


def test_other_threads_run_while_a_file_is_verified(tmp_path: Path) -> None:
    count = 1_500_000
    tokens = b"".join(struct.pack("<Q", 8) + b"%08x" % i for i in range(count))
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 3) + ARCH + key(b"tokenizer.ggml.model", twin.STR, text(b"test"))
    path = tmp_path / "many.gguf"
    path.write_bytes(head + key(b"tokenizer.ggml.tokens", twin.ARR, struct.pack("<IQ", twin.STR, count)) + tokens)
    outcome: list[str] = []

    def work() -> None:
        fd = os.open(path, os.O_RDONLY)
        outcome.append(gguf.verify_fd(fd).facts.tokenizer_model or "")
        os.close(fd)

    before = sys.getswitchinterval()
    # nobody is asked to give the interpreter up: only a release lets this thread go on
    sys.setswitchinterval(60.0)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        turns = 0
        while thread.is_alive():
            thread.join(0.001)
            turns += 1
    finally:
        sys.setswitchinterval(before)
    assert outcome == ["test"]
    assert turns > 10


def test_many_tokens_in_linear_time_and_little_memory(tmp_path: Path) -> None:
    # six million tokens go through the set in two passes; one of them stands there twice, far apart
    count = 6_000_000
    tokens = bytearray()
    for i in range(count):
        token = b"%x" % (i if i != count - 5 else 3)
        tokens += len(token).to_bytes(8, "little") + token
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 3) + ARCH + key(b"tokenizer.ggml.model", twin.STR, text(b"test"))
    path = tmp_path / "many.gguf"
    path.write_bytes(head + key(b"tokenizer.ggml.tokens", twin.ARR, struct.pack("<IQ", twin.STR, count)) + tokens)
    code = (
        "import os, resource, sys\n"
        "from inferno_native import gguf\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    gguf.verify_fd(fd)\n"
        "except gguf.GgufError as error:\n    reason = error.reason\n"
        "print(reason, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    reason, grown = done.stdout.split()
    assert reason == "duplicate-token"
    header_kib = path.stat().st_size // 1024
    if "INFERNO_SANITIZED" not in os.environ:  # shadow memory is not ours to bound
        assert int(grown) < header_kib + 66 * 1024  # the header itself, and at most 64 MiB of tables


@pytest.mark.parametrize(("name", "value", "reason", "policy"), [
    (b"rope.freq_base", float("nan"), "float-not-finite", True),
    (b"rope.freq_base", 0.0, "float-out-of-range", True),
    (b"rope.scaling.factor", float("inf"), "float-not-finite", True),
    (b"rope.scaling.factor", -1.0, "float-out-of-range", True),
    (b"attention.layer_norm_epsilon", float("nan"), "float-not-finite", False),
    (b"attention.layer_norm_epsilon", float("-inf"), "float-not-finite", False),
    (b"attention.layer_norm_epsilon", -1e-9, "float-out-of-range", False),
    (b"attention.layer_norm_rms_epsilon", float("inf"), "float-not-finite", True),
    (b"attention.layer_norm_rms_epsilon", 1.0, "float-out-of-range", True),
    (b"attention.layer_norm_rms_epsilon", 0.0, "ok", False),
    (b"rope.scaling.factor", 0.0, "ok", False),
])
def test_what_the_reference_dies_of_cannot_be_waived(name: bytes, value: float, reason: str, policy: bool) -> None:
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + ARCH + key(b"llama." + name, twin.F32, struct.pack("<f", value))
    assert native(data) == twin.judge(data) == reason
    waived = native(data, allow=POLICY_REASONS)
    assert waived == ("ok" if policy or reason == "ok" else reason)
