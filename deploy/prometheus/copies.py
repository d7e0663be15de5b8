"""Writes the copies of alerts.yaml that Kubernetes needs: the PrometheusRule of deploy/kubernetes, and the chart's own file,
since a chart can read nothing outside of itself. Prints nothing; tests/test_deploy_kubernetes.py compares."""

import textwrap
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent.parent
RULE = DEPLOY / "kubernetes" / "prometheusrule.yaml"
CHART = DEPLOY / "helm" / "inferno" / "alerts.yaml"
HEAD = """\
# Written by deploy/prometheus/copies.py from alerts.yaml beside it. Needs the Prometheus operator.
# The job is `inferno` where the ServiceMonitor beside this file scrapes (its jobLabel).
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: inferno
  labels: {app.kubernetes.io/name: inferno}
spec:
"""


def copies() -> dict[Path, str]:
    """Return each copy's path and text."""
    text = (DEPLOY / "prometheus" / "alerts.yaml").read_text()
    groups = text[text.index("groups:\n") :]
    return {
        RULE: HEAD + textwrap.indent(groups, "  "),
        CHART: "# Written by deploy/prometheus/copies.py from alerts.yaml beside it.\n" + groups,
    }


if __name__ == "__main__":
    for path, text in copies().items():
        path.write_text(text)
