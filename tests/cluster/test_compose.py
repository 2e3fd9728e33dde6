"""`docker/compose.yaml` is valid for compose, opens ports on loopback only, and starts Ray as the cluster files do."""

import re
import subprocess
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from flows.deploy import deployments_of
from flows.shell import read_facts
from tests.cluster.test_manifests import ROOT, document

FILE = ROOT / "docker" / "compose.yaml"
COMPOSE: dict[str, Any] = document(FILE)
IMAGES = dict(line.split("=", 1) for line in (FILE.parent / "images.env").read_text().splitlines() if line[0] != "#")


def check(text: str) -> None:
    """Raise ValueError for a file that compose would refuse after it inserts the image names."""
    named = re.sub(r"\$\{([A-Z_]+_IMAGE):[^}]*\}", lambda found: IMAGES[found[1]], text)
    PyCompose.from_yaml(yaml.safe_dump(yaml.safe_load(named)))


def test_the_file_is_valid() -> None:
    check(FILE.read_text())


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("depends_on: [head]", "depend_on: [head]"),
        ("condition: service_healthy", "condition: service_health"),
        ("shm_size: 2gb", "shm_sise: 2gb"),
        ("replicas: 2", "replica: 2"),
    ],
)
def test_a_misspelt_key_is_refused(right: str, wrong: str) -> None:
    text = FILE.read_text()
    assert right in text
    with pytest.raises(ValueError):
        check(text.replace(right, wrong))


def test_every_port_is_bound_to_loopback_and_ray_requires_a_token() -> None:
    services = COMPOSE["services"]
    assert all(port.startswith("127.0.0.1:") for one in services.values() for port in one.get("ports", []))
    for name in ("head", "worker", "flows"):
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"
        assert services[name]["environment"]["RAY_AUTH_TOKEN"].startswith("${TOKEN:?")


def test_no_secret_has_a_default_and_third_party_images_are_named_in_one_place() -> None:
    text = FILE.read_text()
    asked = set(re.findall(r"\$\{([A-Z_]+)", text))
    assert ":-" not in text and set(re.findall(r"\$\{[A-Z_]+(.)", text)) == {":"}
    made = subprocess.run(["sh", str(FILE.parent / "secrets.sh")], capture_output=True, text=True, check=True).stdout
    secrets = dict(line.split("=", 1) for line in made.splitlines())
    assert asked == set(IMAGES) | set(secrets) and all(len(secret) == 40 for secret in secrets.values())
    services = COMPOSE["services"]
    assert all(one["image"].startswith("${") or one["image"] == "fer-pipeline:cpu" for one in services.values())


def test_prefect_requires_a_password_and_services_share_only_needed_networks() -> None:
    services = COMPOSE["services"]
    server = services["prefect"]["environment"]
    assert server["PREFECT_SERVER_API_AUTH_STRING"].startswith("fer:${PREFECT_PASSWORD:?")
    assert server["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4200"
    assert services["flows"]["environment"]["PREFECT_API_AUTH_STRING"] == "fer:${PREFECT_PASSWORD:?}"
    networks = COMPOSE["networks"]
    assert all(facts.get("internal") for name, facts in networks.items() if name != "outside")
    on = {name: {one for one, service in services.items() if name in service["networks"]} for name in networks}
    assert on["database"] == {"postgres", "prefect"} and on["flows"] == {"prefect", "flows"}
    assert on["outside"] == {name for name, one in services.items() if one.get("ports")}
    assert "postgres" not in on["cluster"] and "grafana" not in on["cluster"]


def test_ray_is_started_as_on_a_cluster() -> None:
    """The rehearsal runs those commands; this test lists the differences."""
    aws = document(ROOT / "cluster" / "aws.yaml")
    (head,) = COMPOSE["services"]["head"]["command"]
    (worker,) = COMPOSE["services"]["worker"]["command"]
    there = set(aws["head_start_ray_commands"][-1].split())
    assert set(head.split()) - there == {"--dashboard-host=0.0.0.0", "--num-cpus=0", "--block"}
    there = set(aws["worker_start_ray_commands"][-1].split())
    assert set(worker.split()) - there == {"--address=head:6379", "--block"}


def test_its_mounted_files_exist_and_its_schedule_is_valid() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (FILE.parent / source).exists(), volume
    (deployment,) = deployments_of(read_facts(str(FILE.parent / "schedules.toml")))
    assert deployment.name == "media"
