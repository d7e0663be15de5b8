"""`inferno models …` as a user runs it."""

import hashlib
import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from inferno.cli.model_files import group_shards
from inferno.cli.models import models
from inferno.cli.served import ServedModels
from inferno.config import load
from inferno.download import DownloadError, Reference, check_url, download
from tests.conftest import DATA, shared

KEYS = ["path", "verdict", "reason", "offset", "detail", "policy", "seconds"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    subprocess.run([sys.executable, str(DATA / "gguf_corpus" / "make_corpus.py"), str(folder)], check=True,
                   capture_output=True)
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(f'[storage]\ndata_dir = "{tmp_path}"\n')
    return path


def run(*arguments: object, obj: object = None) -> Result:
    return CliRunner().invoke(models, [str(argument) for argument in arguments], obj=obj)


def verify(*arguments: object) -> tuple[int, list[dict[str, Any]]]:
    result = run("verify", "--json", *arguments)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert all(list(line) == KEYS for line in lines)
    return result.exit_code, lines


def test_verify_judges_the_whole_corpus_in_one_call(corpus: Path) -> None:
    """sec_175: every kind of fault, refused with its reason."""
    cases = json.loads((corpus / "manifest.json").read_text())["cases"]
    for profile in ("model", "container"):
        chosen = [case for case in cases if case["profile"] == profile]
        code, lines = verify("--profile", profile, *(corpus / name for case in chosen for name in case["files"]))
        by_path = {line["path"]: line for line in lines}
        wrong = []
        for case in chosen:
            line = by_path[str(corpus / case["files"][0])]
            if line["verdict"] != case["verdict"] or line["reason"] not in [case["reason"], *case["also"]]:
                wrong.append((case["name"], case["reason"], line["reason"]))
            if case["verdict"] == "invalid" and line["policy"] != case["policy"]:
                wrong.append((case["name"], "policy", line["policy"]))
        assert wrong == []
        assert len(lines) == len(chosen)  # one object for each model, shards together
        assert code == (1 if profile == "model" else 0)


def test_verify_needs_no_configuration_and_says_what_is_wrong(corpus: Path, tmp_path: Path) -> None:
    code, lines = verify(corpus / "tiny_llama_q8.gguf")
    assert (code, lines[0]["verdict"], lines[0]["reason"], lines[0]["offset"]) == (0, "valid", "ok", None)
    code, lines = verify(tmp_path / "missing.gguf", corpus / "block_count_513.gguf")
    assert code == 1
    assert [line["reason"] for line in lines] == ["file-not-found", "block-count-invalid"]
    assert "wanted 512" in lines[1]["detail"]
    assert "had 513" in lines[1]["detail"]
    assert lines[1]["offset"] > 24


def test_verify_with_digest(corpus: Path, tmp_path: Path) -> None:
    path = corpus / "tiny_llama_q8.gguf"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert verify("--sha256", digest.upper(), path)[0] == 0
    code, lines = verify("--sha256", "0" * 64, path)
    assert (code, lines[0]["reason"]) == (1, "checksum-mismatch")
    assert run("verify", "--sha256", "xyz", path).exit_code == 2
    assert run("verify", "--sha256", digest, path, corpus / "tiny_llama_f16.gguf").exit_code == 2
    copy = tmp_path / "m.gguf"
    shutil.copy(path, copy)
    (tmp_path / "m.gguf.sha256").write_text(f"{digest}  m.gguf\n")
    assert verify(copy)[0] == 0
    (tmp_path / "m.gguf.sha256").write_text(f"{'1' * 64}  m.gguf\n")
    assert verify(copy)[1][0]["reason"] == "checksum-mismatch"


def test_shards_are_grouped_by_their_keys_not_by_chance(corpus: Path, tmp_path: Path) -> None:
    second, first = sorted((str(p) for p in corpus.glob("split_two-*.gguf")), reverse=True)
    assert group_shards([second, str(corpus / "one_byte.gguf"), first]) == [
        [first, second], [str(corpus / "one_byte.gguf")]]
    # whole models that only happen to be named like shards
    names = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    for name in names:
        shutil.copy(corpus / "tiny_llama_q8.gguf", name)
    assert group_shards([str(name) for name in names]) == [[str(names[0])], [str(names[1])]]
    # shards under other names
    others = [tmp_path / f"part{i}.gguf" for i in (7, 3)]
    for name, source in zip(others, (first, second), strict=True):
        shutil.copy(source, name)
    assert group_shards([str(others[1]), str(others[0])]) == [[str(others[0]), str(others[1])]]
    # parts of a set that is not complete stay alone
    assert group_shards([str(corpus / "split_second_alone.gguf"), str(corpus / "split_no_past_count.gguf")]) == [
        [str(corpus / "split_second_alone.gguf")], [str(corpus / "split_no_past_count.gguf")]]


def test_add_list_info_remove(corpus: Path, config: Path) -> None:
    path = corpus / "chat_template_rich.gguf"
    added = run("add", path, "--name", "mine", "--config", config, "--json")
    assert added.exit_code == 0, added.output
    record = json.loads(added.stdout)
    assert record["sha256"] == [hashlib.sha256(path.read_bytes()).hexdigest()]
    (row,) = json.loads(run("list", "--config", config, "--json").stdout)
    assert (row["name"], row["origin"], row["sha256"]) == ("mine", "added", record["sha256"])
    assert "mine" in run("list", "--config", config).stdout
    facts = json.loads(run("info", "mine", "--config", config, "--json").stdout)
    assert (facts["architecture"], facts["chat_templates"], facts["vocab_size"]) == ("llama", ["default"], 267)
    assert run("info", "other", "--config", config).exit_code == 1
    assert run("remove", "mine", "--config", config).exit_code == 0
    assert json.loads(run("list", "--config", config, "--json").stdout) == []
    assert run("remove", "mine", "--config", config).exit_code == 1


def test_info_shows_public_prefixes(corpus: Path, tmp_path: Path) -> None:
    path = corpus / "chat_template_rich.gguf"
    file = tmp_path / "config.toml"
    file.write_text(f"[models.lamps]\npath = '{path}'\npublic_prefixes = ['You sell lamps.']\n")
    assert json.loads(run("info", "lamps", "--config", file, "--json").stdout)["public_prefixes"] == ["You sell lamps."]
    assert "You sell lamps." in run("info", "lamps", "--config", file).stdout


def test_info_shows_what_was_measured(corpus: Path, tmp_path: Path) -> None:
    path = corpus / "chat_template_rich.gguf"
    file = tmp_path / "config.toml"
    file.write_text(f"[models.lamps]\npath = '{path}'\n")
    assert json.loads(run("info", "lamps", "--config", file, "--json").stdout)["calibration"] == {}
    served = ServedModels(load(config=str(file), environ={}).settings)
    served.loaded(served.engine_settings("lamps"), {"flash_attention": True, "quantum": 64, "threads": 3})
    shown = json.loads(run("info", "lamps", "--config", file, "--json").stdout)["calibration"]
    assert shown == {"flash_attention": True, "quantum": 64, "threads": 3}
    assert "'threads': 3" in run("info", "lamps", "--config", file).stdout


def test_add_refuses_and_names_the_waiver(corpus: Path, config: Path) -> None:
    path = corpus / "trailing_4096.gguf"
    refused = run("add", path, "--config", config)
    assert refused.exit_code == 1
    assert "--allow trailing-data" in refused.output
    assert run("add", path, "--config", config, "--allow", "trailing-data").exit_code == 0
    unwaivable = run("add", corpus / "block_count_0.gguf", "--config", config, "--allow", "block-count-invalid")
    assert unwaivable.exit_code == 2
    assert "cannot be waived" in unwaivable.output
    assert run("add", corpus / "tiny_llama_q8.gguf", "--config", config, "--sha256", "0" * 64).exit_code == 1
    assert run("add", corpus / "template_include.gguf", "--config", config).exit_code == 1


def test_a_sum_file_beside_the_model_is_compared(corpus: Path, config: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    shutil.copy(corpus / "tiny_llama_q8.gguf", path)
    (tmp_path / "SHA256SUMS").write_text(f"{'2' * 64}  m.gguf\n")
    result = run("add", path, "--config", config)
    assert result.exit_code == 1
    assert "checksum-mismatch" in result.output


def test_help_has_examples_and_loads_nothing_heavy() -> None:
    for command in ([], ["list"], ["info"], ["add"], ["verify"], ["remove"]):
        result = run(*command, "--help")
        assert result.exit_code == 0
        assert "Example" in result.output
    code = ("import sys, inferno.cli.models; heavy = {'jinja2', 'numpy', 'rich', 'llama_cpp', "
            "'inferno_native.gguf', 'sqlalchemy', 'starlette'}; print(sorted(heavy & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_real_model_is_valid() -> None:
    assert verify(shared("models/all-MiniLM-L6-v2.Q8_0.gguf"))[0] == 0


# --------------------------------------------------------------------------- downloads


class Hub(http.server.BaseHTTPRequestHandler):
    files: dict[str, bytes] = {}  # noqa: RUF012
    redirects: dict[str, str] = {}  # noqa: RUF012
    etags: dict[str, str] = {}  # noqa: RUF012
    seen: list[tuple[str, str | None]] = []  # noqa: RUF012
    cut = 0
    no_length = False

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization")))
        if self.path in self.redirects:
            self.send_response(302)
            self.send_header("Location", self.redirects[self.path])
        elif self.path in self.files:
            self.send_response(200)
            if not self.no_length:
                self.send_header("Content-Length", str(len(self.files[self.path])))
        else:
            self.send_response(404)
        if self.path in self.etags:
            self.send_header("X-Linked-Etag", f'"{self.etags[self.path]}"')
        self.end_headers()
        data = self.files.get(self.path, b"")
        self.wfile.write(data[: len(data) - self.cut])

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def serve(handler: type[Hub]) -> tuple[http.server.HTTPServer, str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def hub() -> Iterator[tuple[type[Hub], str]]:
    handler = type("Handler", (Hub,), {"files": {}, "redirects": {}, "etags": {}, "seen": []})
    server, base = serve(handler)
    yield handler, base
    server.shutdown()
    server.server_close()


FILE = "/org/repo/resolve/main/m.gguf"


def test_add_from_a_hub(corpus: Path, config: Path, tmp_path: Path, hub: tuple[type[Hub], str]) -> None:
    handler, base = hub
    data = (corpus / "tiny_llama_q8.gguf").read_bytes()
    handler.files[FILE] = data
    obj = {"hub_base": base, "plain_origin": base}
    result = run("add", "hf:org/repo/m.gguf", "--config", config, "--json", obj=obj)
    assert result.exit_code == 0, result.output
    kept = tmp_path / "models" / "m.gguf"
    assert kept.read_bytes() == data
    assert json.loads(result.stdout)["sha256"] == [hashlib.sha256(data).hexdigest()]
    assert sorted(p.name for p in kept.parent.iterdir()) == ["m.gguf", "registry.json", "registry.lock"]
    again = run("add", "hf:org/repo/m.gguf", "--config", config, obj=obj)
    assert again.exit_code == 1


def test_a_bad_download_gets_no_name(corpus: Path, config: Path, tmp_path: Path, hub: tuple[type[Hub], str]) -> None:
    """sec_174."""
    handler, base = hub
    obj = {"hub_base": base, "plain_origin": base}
    handler.files[FILE] = (corpus / "block_count_0.gguf").read_bytes()
    assert "block-count-invalid" in run("add", "hf:org/repo/m.gguf", "--config", config, obj=obj).output
    handler.files[FILE] = (corpus / "tiny_llama_q8.gguf").read_bytes()
    handler.etags[FILE] = "3" * 64
    assert "SHA-256" in run("add", "hf:org/repo/m.gguf", "--config", config, obj=obj).output
    handler.etags.clear()
    assert run("add", "hf:org/repo/m.gguf", "--sha256", "4" * 64, "--config", config, obj=obj).exit_code == 1
    handler.cut = 10
    assert run("add", "hf:org/repo/m.gguf", "--config", config, obj=obj).exit_code == 1
    assert [p.name for p in (tmp_path / "models").iterdir()] == []


def test_shards_come_together(corpus: Path, config: Path, tmp_path: Path, hub: tuple[type[Hub], str]) -> None:
    handler, base = hub
    for path in corpus.glob("split_two-*.gguf"):
        handler.files[f"/org/repo/resolve/main/q8/{path.name}"] = path.read_bytes()
    result = run("add", "hf:org/repo/q8/split_two-00001-of-00002.gguf", "--config", config, "--json",
                 obj={"hub_base": base, "plain_origin": base})
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["paths"]) == 2


def test_size_limits_hold_whatever_the_server_says(tmp_path: Path, hub: tuple[type[Hub], str]) -> None:
    handler, base = hub
    handler.files[FILE] = b"x" * 5000
    for no_length in (False, True):
        handler.no_length = no_length
        with pytest.raises(DownloadError, match="4999"):
            download(base + FILE, tmp_path, max_bytes=4999, plain_origin=base)
        with download(base + FILE, tmp_path, max_bytes=5000, plain_origin=base) as done:
            assert done.size_bytes == 5000
    assert list(tmp_path.iterdir()) == []


def test_no_credential_goes_to_another_origin(tmp_path: Path, hub: tuple[type[Hub], str]) -> None:
    handler, base = hub
    handler.files["/blob"] = b"data"
    handler.redirects[FILE] = "/blob"
    with download(base + FILE, tmp_path, max_bytes=100, token="secret", plain_origin=base):
        pass
    assert handler.seen == [(FILE, "Bearer secret"), ("/blob", "Bearer secret")]
    # another origin: plain http is refused there, and so is every other scheme
    for target in ("http://127.0.0.2:1/blob", "file:///etc/passwd", "ftp://x/y", "//127.0.0.1:1/blob", "https://u:p@x/y"):
        handler.redirects[FILE] = target
        with pytest.raises(DownloadError):
            download(base + FILE, tmp_path, max_bytes=100, token="secret", plain_origin=base)


def test_a_token_is_dropped_on_the_way_to_another_host(
    tmp_path: Path, hub: tuple[type[Hub], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, base = hub
    other = type("Other", (Hub,), {"files": {"/blob": b"data"}, "redirects": {}, "etags": {}, "seen": []})
    server, elsewhere = serve(other)
    try:
        handler.redirects[FILE] = elsewhere + "/blob"
        # let plain http through to the second server: what is tested is the credential
        import inferno.download as module

        real = check_url
        monkeypatch.setattr(module, "check_url", lambda url, origin: real(url, elsewhere if elsewhere in url else origin))
        with download(base + FILE, tmp_path, max_bytes=100, token="secret", plain_origin=base) as done:
            assert done.size_bytes == 4
        assert handler.seen == [(FILE, "Bearer secret")]
        assert other.seen == [("/blob", None)]
    finally:
        server.shutdown()
        server.server_close()


def test_redirects_end(tmp_path: Path, hub: tuple[type[Hub], str]) -> None:
    handler, base = hub
    handler.redirects[FILE] = FILE
    with pytest.raises(DownloadError, match="redirects"):
        download(base + FILE, tmp_path, max_bytes=100, plain_origin=base)


@pytest.mark.parametrize("text", [
    "hf:org/repo", "hf:org/repo/../x.gguf", "hf:../repo/x.gguf", "hf:org/repo/a/./x.gguf", "hf:org/repo/x.bin",
    "hf:org/repo/x.gguf?y", "hf:org/repo/x.gguf#y", "hf:org//x.gguf", "hf:o rg/repo/x.gguf", "org/repo/x.gguf",
    "hf:org/repo/x\n.gguf", "hf:org/repo/é.gguf",
])
def test_odd_references_are_refused(text: str) -> None:
    with pytest.raises(DownloadError):
        Reference.parse(text)


@pytest.mark.parametrize("url", [
    "http://huggingface.co/x", "https:///x", "https://user@host/x", "https://host:0/x", "https://host:99999/x",
    "https://ho st/x", "javascript:x", "",
])
def test_only_clean_https_addresses_are_used(url: str) -> None:
    with pytest.raises(DownloadError):
        check_url(url, None)


def test_every_reason_is_documented() -> None:
    from inferno_native.gguf_report import POLICY_REASONS, REASONS

    text = (Path(__file__).resolve().parents[3] / "docs" / "models.md").read_text()
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert set(rows) == set(REASONS)
    for reason, line in rows.items():
        assert REASONS[reason] in line
        assert line.endswith("| yes |") == (reason in POLICY_REASONS)
