"""The compose file: accepted by an implementation of the Compose Specification, and as confined as the guide's line."""

import pytest
import yaml

from tests.conftest import ROOT

compose_spec = pytest.importorskip("compose_spec", reason="no wheel of compose-spec for this machine")

FILE = ROOT / "deploy" / "compose.yaml"
TEXT = FILE.read_text()


def test_the_file_keeps_to_the_specification_and_its_references_hold():
    parsed = compose_spec.PyCompose.from_yaml(TEXT)
    parsed.validate()
    assert parsed.service_names() == ["inferno"]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("read_only: true", "read_onyl: true"),
        ("cap_drop: [ALL]", "cap_drop: ALL"),
        ("pids_limit: 512", "pids_limit: many"),
        ("secrets: [jwt_secret,", "secrets: [jwt_secrets,"),
    ],
)
def test_a_file_that_does_not_is_refused(right, wrong):
    assert right in TEXT
    with pytest.raises(ValueError, match=r"."):
        compose_spec.PyCompose.from_yaml(TEXT.replace(right, wrong)).validate()


def test_box_4_the_service_is_as_confined_as_the_guide_s_line():
    service = yaml.safe_load(TEXT)["services"]["inferno"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices", "user"} & set(service)
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert all("size=" in mount for mount in service["tmpfs"])
    assert [mount.split(":")[0] for mount in service["volumes"]] == list(yaml.safe_load(TEXT)["volumes"])


def test_secrets_are_files_and_none_stands_in_the_file():
    document = yaml.safe_load(TEXT)
    service = document["services"]["inferno"]
    assert set(service["secrets"]) == set(document["secrets"])
    assert all(set(secret) == {"file"} for secret in document["secrets"].values())
    for name in ("INFERNO_JWT_SECRET", "INFERNO_ADMIN_PASSWORD"):
        assert name not in service["environment"]
        assert service["environment"][f"{name}_FILE"].removeprefix("/run/secrets/") in service["secrets"]
