"""Alert rules and the dashboard: sound by promtool, tested rule by rule, and over metrics that exist."""

import json
import re
import shutil
import subprocess

import pytest

from tests.conftest import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = json.loads((ROOT / "deploy/grafana/inferno.json").read_text())
METRIC = re.compile(r"\binferno_[a-z_]+")


def promtool(*arguments):
    if shutil.which("promtool") is None:
        pytest.skip("no promtool: apt-get install prometheus")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, cwd=PROMETHEUS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def exported():
    """Return the names of all series that a scrape can have."""
    text = (ROOT / "inferno/metrics.py").read_text()
    found = set()
    for kind, name in re.findall(r'(Counter|Gauge|Histogram)\(\s*"(inferno_\w+)"', text):
        suffixes = {"Counter": ["_total"], "Gauge": [""], "Histogram": ["_bucket", "_sum", "_count"]}[kind]
        found |= {name + suffix for suffix in suffixes}
    return found


def test_promtool_finds_the_rules_and_the_configuration_sound():
    assert "SUCCESS" in promtool("check", "rules", "alerts.yaml")
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")


def test_every_rule_has_a_unit_test_in_which_it_fires():
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yaml")
    rules = re.findall(r"- alert: (\w+)", (PROMETHEUS / "alerts.yaml").read_text())
    fired = re.findall(r"alertname: (\w+)\n\s+exp_alerts:", (PROMETHEUS / "alerts_test.yaml").read_text())
    assert sorted(set(fired)) == sorted(rules)


@pytest.mark.parametrize("text", ["alerts", "dashboard"])
def test_only_metrics_that_exist_are_asked_for(text):
    if text == "alerts":
        used = set(METRIC.findall((PROMETHEUS / "alerts.yaml").read_text()))
    else:
        used = {name for panel in DASHBOARD["panels"] for target in panel.get("targets", ()) for name in METRIC.findall(target["expr"])}
    assert used
    assert not used - exported()


def test_every_metric_stands_on_the_dashboard_or_in_an_alert_or_is_a_part_of_one_that_does():
    used = set(METRIC.findall(json.dumps(DASHBOARD) + (PROMETHEUS / "alerts.yaml").read_text()))
    unseen = {name for name in exported() if name not in used and not name.endswith(("_sum", "_count"))}
    assert unseen <= {"inferno_kv_used_tokens", "inferno_kv_total_tokens"}  # shown as a share


def test_the_page_lists_every_metric():
    text = (ROOT / "docs/observability.md").read_text()
    listed = set(re.findall(r"^\| `(inferno_\w+)`", text, re.M))
    assert listed == {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported()}


def test_panels_do_not_lie_over_each_other_and_have_ids_of_their_own():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = set()
    for panel in panels:
        place = panel["gridPos"]
        own = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert max(x for x, _ in own) < 24
        assert not own & cells, panel["title"]
        cells |= own


def lost(before, after, place=""):
    """Return what stands in `before` and not, or otherwise, in `after`."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [gone for name, value in before.items() for gone in lost(value, after.get(name, ...), f"{place}/{name}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [gone for index, value in enumerate(before) for gone in lost(value, after[index], f"{place}/{index}")]
    return [] if before == after else [place]


def through_grafana_s_types(document):
    """Read a dashboard with the classes that Grafana generates from its own schema, and write it again."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    return json.loads(JSONEncoder().encode(Dashboard.from_json(document)))


def test_grafana_s_own_schema_knows_every_field_of_the_dashboard():
    """What its types do not know is gone from what they write: a misspelt or invented field shows."""
    known_by_grafana_itself = ("/definition", "/allValue")  # of variables: written by its editor, not in its schema
    gone = lost(DASHBOARD, through_grafana_s_types(DASHBOARD))
    assert [place for place in gone if not place.endswith(known_by_grafana_itself)] == []
    broken = json.loads(json.dumps(DASHBOARD))
    broken["panels"][1]["gridpos"] = broken["panels"][1].pop("gridPos")
    broken["templating"]["list"][1]["multy"] = True
    assert {"/panels/1/gridpos", "/templating/list/1/multy"} <= set(lost(broken, through_grafana_s_types(broken)))


def test_panels_are_of_kinds_and_sources_that_grafana_has():
    import importlib.util

    for panel in DASHBOARD["panels"]:
        assert panel["type"] == "row" or importlib.util.find_spec(f"grafana_foundation_sdk.models.{panel['type']}"), panel["title"]
        for target in panel.get("targets", ()):
            assert (target.get("datasource") or panel["datasource"])["type"] == "prometheus"
