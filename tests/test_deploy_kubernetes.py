"""Kubernetes manifests and the Helm chart: valid by Kubernetes' own schemas, restricted, and configured so that the
server accepts it. The chart is rendered by Helm's own engine (helm-python-sdk carries it)."""

import json
import shutil
import subprocess

import jsonschema
import kubernetes_validate
import pytest
import yaml

from deploy.prometheus.copies import copies
from inferno import config
from tests.conftest import DATA, ROOT

helm_python = pytest.importorskip("helm_python", reason="no wheel of helm-python-sdk for this machine")

VERSIONS = ("1.30", "1.37")  # the oldest and the newest that we look at
PLAIN = ROOT / "deploy" / "kubernetes"
CHART = ROOT / "deploy" / "helm" / "inferno"
CUSTOM = json.loads((DATA / "custom_resources.json").read_text())  # kinds of the Prometheus operator, as far as used here
FULL = {
    "networkPolicy": {"enabled": True},
    "serviceMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True, "labels": {"release": "monitoring"}},
    "persistence": {"storageClass": "fast"},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "config": {"server": {"allowed_hosts": ["inferno.example.com"]}},
}


def plain():
    listed = yaml.safe_load((PLAIN / "kustomization.yaml").read_text())["resources"]
    optional = ("servicemonitor.yaml", "prometheusrule.yaml")  # need the Prometheus operator; the file says so
    assert {*listed, *optional, "kustomization.yaml"} == {path.name for path in PLAIN.glob("*.yaml")}
    return [yaml.safe_load((PLAIN / name).read_text()) for name in (*listed, *optional)]


def rendered(values):
    with helm_python.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name="demo", namespace="prod")
    return [document for text in files.values() for document in yaml.safe_load_all(text) if document]


SETS = {
    "kustomize": plain,
    "helm": lambda: rendered({}),
    "helm with everything": lambda: rendered(FULL),
    "helm with a claim": lambda: rendered({"persistence": {"existingClaim": "mine"}}),
}


@pytest.fixture(params=SETS)
def documents(request):
    return SETS[request.param]()


def one(documents, kind):
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_kubernetes_own_schema(documents, version):
    checked = 0
    for document in documents:
        if document["kind"] in CUSTOM:
            jsonschema.validate(document, CUSTOM[document["kind"]])
        else:
            kubernetes_validate.validate(document, version, strict=True)
            checked += 1
    assert checked >= 4


def test_the_schemas_refuse_what_is_wrong():
    broken = one(plain(), "Deployment")
    broken["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[0], strict=True)


def test_box_4_the_pod_keeps_to_the_restricted_profile(documents):
    """Pod Security Standards, profile restricted, each of its rules."""
    pod = one(documents, "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
    assert all(set(volume) - {"name"} <= allowed for volume in pod["volumes"])
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert not any("hostPort" in port for port in container["ports"])
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container)
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False


def test_secrets_come_as_files_and_nothing_secret_stands_in_a_manifest(documents):
    container = one(documents, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    names = {entry["name"]: entry["value"] for entry in container["env"]}
    assert set(names) == {"INFERNO_JWT_SECRET_FILE", "INFERNO_ADMIN_PASSWORD_FILE"}
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert "/run/secrets/inferno" in mounts
    assert not [document for document in documents if document["kind"] == "Secret"]


def test_references_between_objects_hold(documents):
    pod = one(documents, "Deployment")["spec"]["template"]
    service, policy = one(documents, "Service"), one(documents, "NetworkPolicy")
    labels = pod["metadata"]["labels"]
    for selector in (service["spec"]["selector"], policy["spec"]["podSelector"]["matchLabels"],
                     one(documents, "Deployment")["spec"]["selector"]["matchLabels"]):  # fmt: skip
        assert selector.items() <= labels.items()
    ports = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    assert policy["spec"]["egress"] == []
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in pod["spec"]["containers"][0]["volumeMounts"]} == set(volumes)
    assert volumes["config"]["configMap"]["name"] == one(documents, "ConfigMap")["metadata"]["name"]
    claims = [document["metadata"]["name"] for document in documents if document["kind"] == "PersistentVolumeClaim"]
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] in (claims or ["mine"])
    for monitor in (document for document in documents if document["kind"] == "ServiceMonitor"):
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert {entry["port"] for entry in monitor["spec"]["endpoints"]} <= {port["name"] for port in service["spec"]["ports"]}
        # InfernoDown asks for this job: whatever the release is called.
        assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "inferno"


def test_the_server_accepts_the_configuration_of_the_config_map(documents, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(one(documents, "ConfigMap")["data"]["config.toml"])
    settings = config.load(config=str(file), environ={}).settings
    assert settings.security.sandbox == "required"
    assert settings.security.auth_enabled
    assert settings.storage.data_dir == "/var/lib/inferno"


def test_the_chart_has_no_fault_that_helm_finds():
    found = helm_python.lint(str(CHART))
    assert found["errors"] == []
    assert [message for message in found["messages"] if message["severity"] > 1] == []  # 1: "icon is recommended"


@pytest.mark.parametrize("where", ["kustomize", "helm with everything"])
def test_the_alerts_are_those_of_the_prometheus_file(where, tmp_path):
    """Word for word, templates of the annotations included; promtool reads them as they stand in the object."""
    assert {path: path.read_text() for path in copies()} == copies()
    rule = one(SETS[where](), "PrometheusRule")
    wanted = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())
    assert rule["spec"] == wanted
    assert rule["metadata"]["labels"]["app.kubernetes.io/name"] == "inferno"
    if where != "kustomize":
        assert rule["metadata"]["labels"]["release"] == "monitoring"
    if shutil.which("promtool") is None:
        pytest.skip("no promtool: apt-get install prometheus")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    done = subprocess.run(["promtool", "check", "rules", str(tmp_path / "rules.yaml")], capture_output=True, text=True, check=False)
    assert (done.returncode, "SUCCESS" in done.stdout) == (0, True), done.stderr


def test_the_schemas_of_the_operator_s_kinds_refuse_what_is_wrong():
    for kind, change in (("PrometheusRule", lambda spec: spec["groups"][0]["rules"][0].pop("expr")),
                         ("ServiceMonitor", lambda spec: spec["endpoints"][0].update(prot="admin"))):  # fmt: skip
        broken = one(plain(), kind)
        change(broken["spec"])
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, CUSTOM[kind])
