"""`docker/compose.yaml` is what compose takes, opens doors on loopback only, and starts Ray as the cluster files do."""

from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from flows.deploy import deployments_of
from flows.shell import read_facts
from tests.cluster.test_manifests import ROOT, document

FILE = ROOT / "docker" / "compose.yaml"
COMPOSE: dict[str, Any] = document(FILE)


def check(text: str) -> None:
    """Raise ValueError for what compose would refuse."""
    PyCompose.from_yaml(yaml.safe_dump(yaml.safe_load(text)))


def test_the_file_is_taken() -> None:
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
def test_a_slip_is_refused(right: str, wrong: str) -> None:
    text = FILE.read_text()
    assert right in text
    with pytest.raises(ValueError):
        check(text.replace(right, wrong))


def test_every_port_is_bound_to_loopback_and_ray_asks_for_a_token() -> None:
    services = COMPOSE["services"]
    assert all(port.startswith("127.0.0.1:") for one in services.values() for port in one.get("ports", []))
    for name in ("head", "worker", "flows"):
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"
        assert services[name]["environment"]["RAY_AUTH_TOKEN"].startswith("${TOKEN:?")


def test_ray_is_started_as_on_a_cluster() -> None:
    """The rehearsal runs those commands; what differs is said here."""
    aws = document(ROOT / "cluster" / "aws.yaml")
    (head,) = COMPOSE["services"]["head"]["command"]
    (worker,) = COMPOSE["services"]["worker"]["command"]
    there = set(aws["head_start_ray_commands"][-1].split())
    assert set(head.split()) - there == {"--dashboard-host=0.0.0.0", "--num-cpus=0", "--block"}
    there = set(aws["worker_start_ray_commands"][-1].split())
    assert set(worker.split()) - there == {"--address=head:6379", "--block"}


def test_the_files_that_it_mounts_are_there_and_its_schedule_is_one() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (FILE.parent / source).exists(), volume
    (deployment,) = deployments_of(read_facts(str(FILE.parent / "schedules.toml")))
    assert deployment.name == "media"
