"""The files of `cluster/` are valid for Ray, its operator and Kubernetes, and keep what the documents promise."""

import copy
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
CRDS = ROOT.parent / "shared" / "schemas" / "kuberay"
KUBERNETES = "1.34"
MODES = ("HTTPMode", "K8sJobMode", "SidecarMode", "InteractiveMode")
"""Submission modes of a RayJob: the operator's schema accepts any string."""
FILES = sorted((CLUSTER / "kubernetes").rglob("*.yaml"))
RAY_FILES = [path for path in FILES if "ray.io/v1" in path.read_text()]

needs_crds = pytest.mark.skipif(not CRDS.exists(), reason="the operator's schemas are missing")


def document(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def closed(schema: Any) -> Any:
    """Return a schema that refuses unknown fields."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if "properties" in found and "additionalProperties" not in found and not found.get("x-kubernetes-preserve-unknown-fields"):
        found["additionalProperties"] = False
    return found


@cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    """Return the operator's validator for the `spec` of a kind."""
    crd = yaml.load((CRDS / f"ray.io_{kind.lower()}s.yaml").read_text(), yaml.CSafeLoader)
    schema = next(one["schema"]["openAPIV3Schema"] for one in crd["spec"]["versions"] if one["name"] == "v1")
    return jsonschema.Draft202012Validator(closed(schema["properties"]["spec"]))


def check_ray(manifest: dict[str, Any]) -> None:
    """Raise ValidationError for anything that the operator would refuse or ignore."""
    for error in validator(manifest["kind"]).iter_errors(manifest["spec"]):
        raise error
    mode = job_of(manifest).get("submissionMode", "HTTPMode")
    if mode not in MODES:
        raise jsonschema.ValidationError(f"'{mode}' is not one of {MODES}")


def job_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the job specification of a job's manifest, or of a cron job's template."""
    spec: dict[str, Any] = manifest["spec"]
    return spec.get("jobTemplate", spec)  # type: ignore[no-any-return]


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every key of a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in items:
        if isinstance(key, str):
            yield (*path, key)
        yield from paths_of(inside, (*path, key))


def misspelt(manifest: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    """Return a copy with an extra letter in one key."""
    found = copy.deepcopy(manifest)
    place: Any = found
    for key in path[:-1]:
        place = place[key]
    place[f"{path[-1]}x"] = place.pop(path[-1])
    return found


@needs_crds
@pytest.mark.parametrize("path", RAY_FILES, ids=lambda path: path.stem)
def test_the_operator_accepts_the_file(path: Path) -> None:
    check_ray(document(path))


@needs_crds
def test_every_misspelt_key_of_a_night_is_found() -> None:
    night = document(CLUSTER / "kubernetes" / "night" / "night.yaml")
    free = {"rayStartParams", "limits", "requests"}  # their keys are named by the user
    paths = [path for path in paths_of(night["spec"], ("spec",)) if len(path) > 1 and not free & set(path[:-1])]
    assert len(paths) > 60 and night["kind"] == "RayCronJob"
    for path in paths:
        with pytest.raises(jsonschema.ValidationError):
            check_ray(misspelt(night, path))
    night["spec"]["jobTemplate"]["submissionMode"] = "Nope"
    with pytest.raises(jsonschema.ValidationError, match="is not one of"):
        check_ray(night)


@pytest.mark.parametrize("path", [path for path in FILES if path not in RAY_FILES and path.stem != "kustomization"], ids=str)
def test_kubernetes_accepts_the_file(path: Path) -> None:
    manifest = document(path)
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(misspelt(manifest, ("metadata", "name")), KUBERNETES, strict=True)


@pytest.mark.parametrize("path", RAY_FILES, ids=lambda path: path.stem)
def test_every_pod_of_a_cluster_is_restricted_and_requires_a_token(path: Path) -> None:
    job = job_of(document(path))
    cluster = job.get("rayClusterSpec", job)
    assert cluster["authOptions"] == {"mode": "token"} and cluster["autoscalerOptions"]["version"] == "v2"
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}, KUBERNETES, strict=True
        )
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])


@pytest.mark.parametrize("name", ["night", "training"])
def test_a_job_ends_its_cluster_and_continues_after_a_failure(name: str) -> None:
    manifest = document(CLUSTER / "kubernetes" / name / f"{name}.yaml")
    spec = job_of(manifest)
    assert spec["submissionMode"] == "HTTPMode" and spec["shutdownAfterJobFinishes"] and spec["backoffLimit"] > 0
    assert spec["activeDeadlineSeconds"] and spec["preRunningDeadlineSeconds"] and spec["ttlSecondsAfterFinished"]
    assert spec.get("jobId") == (manifest["metadata"]["name"] if manifest["kind"] == "RayJob" else None)  # a cron job makes many


def test_every_night_of_the_cron_job_has_its_own_folder_and_day() -> None:
    spec = document(CLUSTER / "kubernetes" / "night" / "night.yaml")["spec"]
    minute, hour = map(int, spec["schedule"].split()[:2])
    assert spec["timeZone"] == "Etc/UTC"  # `{date}` is the day in UTC: a restarted night must not run into the next day
    assert 3600 * hour + 60 * minute + spec["jobTemplate"]["activeDeadlineSeconds"] < 24 * 3600
    assert "/{date} " in spec["jobTemplate"]["entrypoint"] + " "


@pytest.mark.parametrize("shape", ["standing", "night", "training"])
def test_a_setup_is_complete_and_its_images_are_named_in_one_place(shape: str) -> None:
    folder = CLUSTER / "kubernetes" / shape
    listed = document(folder / "kustomization.yaml")
    (own,) = [name for name in listed["resources"] if name.endswith(".yaml")]
    assert "../base" in listed["resources"] and listed["components"] == ["../images"]
    base = document(folder.parent / "base" / "kustomization.yaml")["resources"]
    assert all((folder.parent / "base" / name).exists() for name in base) and len(base) == 3
    (replaced,) = document(folder.parent / "images" / "kustomization.yaml")["images"]
    images = set(re.findall(r"image: (\S+)", (folder / own).read_text()))
    assert images and {image.partition(":")[0] for image in images} == {replaced["name"]} and "newTag" not in replaced


def test_ray_accepts_the_file_for_aws() -> None:
    validate_config(prepare_config(document(CLUSTER / "aws.yaml")))


@pytest.mark.parametrize("path", [("provider",), ("head_node_type",), ("idle_timeout_minutes",), ("head_start_ray_commands",)])
def test_ray_refuses_a_misspelt_key_of_the_file_for_aws(path: tuple[str, ...]) -> None:
    with pytest.raises((jsonschema.ValidationError, KeyError, ValueError)):
        validate_config(prepare_config(misspelt(document(CLUSTER / "aws.yaml"), path)))


def test_workers_on_aws_can_read_the_store_and_trainers_have_room() -> None:
    config = document(CLUSTER / "aws.yaml")
    types = config["available_node_types"]
    assert all("IamInstanceProfile" in one["node_config"] and "ImageId" in one["node_config"] for one in types.values())
    assert config["max_workers"] > max(one.get("max_workers", 0) for name, one in types.items() if name != "trainer")
    commands = " ".join(config["head_start_ray_commands"] + config["worker_start_ray_commands"])
    assert commands.count("RAY_AUTH_MODE=token") == commands.count("ulimit -n 65536") == 2
    assert any("auth_token" in target for target in config["file_mounts"])


def test_the_files_contain_no_secret() -> None:
    for path in [*CLUSTER.rglob("*.yaml"), ROOT / "docker" / "Dockerfile"]:
        assert not re.search(
            r"AKIA[0-9A-Z]{16}|(?i:password|secret_access_key|token)\s*[:=]\s*['\"]?[A-Za-z0-9/+]{16,}", path.read_text()
        )
