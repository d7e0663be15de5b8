"""Both guards in a running server: counts in audit and metrics without values, own rules taken over while it runs."""

from __future__ import annotations

import signal

from tests.end_to_end.harness import RunningServer, eventually

SECRET = "AKIAZ7Q2M4X6B3N5V8K1"  # the form of an AWS access key id, invented
RULE = '[[rule]]\nid = "own-project"\ncategory = "own-project"\npattern = "project moonshot"\nscore = 0.9\n'


def metric(server: RunningServer, name: str, label: str) -> float:
    """The sum of one metric's series with this label value, over all workers."""
    with server.http(headers={"Authorization": f"Bearer {server.admin_token()}"}) as client:
        text = client.get("/metrics").text
    assert SECRET not in text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name) and f'"{label}"' in line)


def test_out_4_a_secret_in_an_answer_is_counted_by_kind_and_never_written(server: RunningServer, key: str) -> None:
    client = server.client(key)
    seen = len(server.events("output.redacted"))
    counted = metric(server, "inferno_redactions_total", "aws_access_key_id")
    prompt = f"aws_key = {SECRET}\n" * 4 + "aws_key ="
    answer = client.completions.create(model="demo", prompt=prompt, max_tokens=32, temperature=0)
    assert SECRET not in answer.choices[0].text
    assert "[REDACTED:aws_access_key_id]" in answer.choices[0].text
    pieces = client.completions.create(model="demo", prompt=prompt, max_tokens=32, temperature=0, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == answer.choices[0].text
    assert eventually(lambda: len(server.events("output.redacted")) >= seen + 2)
    records = server.events("output.redacted")[seen:]
    assert all(record["reason"].startswith("aws_access_key_id=") for record in records)
    assert eventually(lambda: metric(server, "inferno_redactions_total", "aws_access_key_id") >= counted + 2)
    assert SECRET not in (server.data / "audit" / "audit.jsonl").read_text()
    assert SECRET not in server.output()


def test_inp_9_own_rules_come_and_go_with_sighup(server: RunningServer, key: str) -> None:
    client = server.client(key)
    rules = server.data / "rules.toml"

    def reported() -> bool:
        before = len(server.events("input.flagged"))
        ask = [{"role": "user", "content": "What about project moonshot?"}]
        client.chat.completions.create(model="demo", messages=ask, max_tokens=1)  # type: ignore[arg-type]
        return eventually(lambda: any("own-project" in r["reason"] for r in server.events("input.flagged")[before:]), 1)

    def reload(result: str) -> None:
        assert server.process is not None
        before = len(server.events("config.reload"))
        server.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: len(server.events("config.reload")) > before, 30)
        assert server.events("config.reload")[-1]["result"] == result

    assert not reported()
    rules.write_text(RULE)
    reload("success")
    assert eventually(reported, 30)
    rules.write_text(RULE.replace("project moonshot", "(x"))
    reload("failure")
    assert reported()
    rules.unlink()
    reload("success")
    assert eventually(lambda: not reported(), 30)
