"""`inferno scan` and `inferno redact`: formats, modes, configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from inferno.cli.guards import redact, scan
from inferno.errors import ConfigError
from tests.native.guard_cases import CASES, load

KEY = "ghp_S2v6km97eVQArzOzCx2NEv3Np3BGthcxOq6c"


def lines(output: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.splitlines()]


def test_scan_json_lines() -> None:
    result = CliRunner().invoke(scan, [str(CASES / "scan_attack.jsonl")])
    assert result.exit_code == 0
    answers = lines(result.stdout)
    assert [a["id"] for a in answers] == [c["id"] for c in load("scan_attack")]
    assert all(set(a) == {"id", "action", "categories", "score"} for a in answers)
    assert {a["action"] for a in answers} == {"report", "strip", "block"}


def test_scan_plain_text_and_identifier() -> None:
    result = CliRunner().invoke(scan, [], input="' OR 1=1 --\n")
    assert lines(result.stdout)[0]["categories"] == ["sql-injection"]
    result = CliRunner().invoke(scan, ["--as", "identifier"], input="tiny\n")
    assert lines(result.stdout) == [{"id": None, "action": "allow", "categories": [], "score": 0.0}]


def test_scan_uses_the_rules_of_a_configurations_data_directory(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[storage]\ndata_dir = "data"\n')
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rules.toml").write_text('[[rule]]\nid = "own"\ncategory = "own"\npattern = "moonshot"\n')
    result = CliRunner().invoke(scan, ["--config", str(tmp_path / "c.toml")], input="our moonshot")
    assert lines(result.stdout)[0]["categories"] == ["own"]


def test_scan_follows_environment_and_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[security]\nscan_content = "block"\n')
    payload = "1; DROP TABLE api_keys; --"
    result = CliRunner().invoke(scan, ["--config", str(config)], input=payload)
    assert lines(result.stdout)[0]["action"] == "block"
    monkeypatch.setenv("INFERNO_SECURITY_SCAN_CONTENT", "off")
    result = CliRunner().invoke(scan, ["--config", str(config)], input=payload)
    assert lines(result.stdout)[0]["action"] == "allow"
    monkeypatch.setenv("INFERNO_SECURITY_SCAN_CONTENT", "maybe")
    result = CliRunner().invoke(scan, [], input=payload)
    assert isinstance(result.exception, ConfigError)


def test_redact_json_lines_split_and_whole_are_the_same() -> None:
    whole = CliRunner().invoke(redact, [str(CASES / "redact_positive.jsonl")])
    split = CliRunner().invoke(redact, ["--split", "3", str(CASES / "redact_positive.jsonl")])
    assert whole.exit_code == split.exit_code == 0
    assert whole.stdout == split.stdout
    assert all(set(a) == {"id", "text", "kinds"} for a in lines(whole.stdout))


def test_redact_plain_text_keeps_everything_else() -> None:
    result = CliRunner().invoke(redact, ["--profile", "secrets"], input=f"é {KEY}, mail a.b@contoso.com\n")
    assert result.stdout == "é [REDACTED:github_token], mail a.b@contoso.com\n"


def test_redact_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERNO_SECURITY_REDACT_PROFILE", "strict")
    assert "ipv4_private" in CliRunner().invoke(redact, [], input="at 10.1.2.3 now").stdout
    assert "10.1.2.3" in CliRunner().invoke(redact, ["--profile", "default"], input="at 10.1.2.3 now").stdout


def test_a_broken_line_is_named() -> None:
    result = CliRunner().invoke(scan, [], input='{"id": "a", "text": "x"}\nnot json\n')
    assert result.exit_code == 1
    assert "line 2" in result.stderr
