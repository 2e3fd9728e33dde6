"""Builds the images on a Debian made here and runs in them what users and clusters start: `make test-images`."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import ray

from tests.cluster.test_manifests import ROOT

pytestmark = [
    pytest.mark.images,
    pytest.mark.timeout(5400),
    pytest.mark.skipif(
        os.geteuid() != 0 or not (shutil.which("buildah") and shutil.which("debootstrap")),
        reason="needs root, buildah and debootstrap",
    ),
]
SUITE = "bookworm"
CHROOT = ["--isolation", "chroot"]
"""Buildah's isolation that needs no rights to create cgroups."""
OWN_PROCESSES = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
"""Processes that a command leaves behind, such as a head, end with it, as in a container."""
ON_A_CLUSTER = """
set -e
ray start --head --num-cpus 1 --include-dashboard false --node-ip-address 127.0.0.1 --object-store-memory 100000000 >&2
fer-pipeline label archive --out on-the-cluster --detector mtcnn --address auto
"""
"""The work of a head's container: `ray start` starts the cluster, a job runs on it."""


def pip_of_this_machine() -> list[str]:
    """Return build options that give the build pip's settings of this machine and the folders that they name."""
    said = subprocess.run([sys.executable, "-m", "pip", "config", "debug"], capture_output=True, text=True, check=True).stdout
    files = [Path(line.strip().removesuffix(", exists: True")) for line in said.splitlines() if line.endswith("exists: True")]
    values = " ".join([*(file.read_text() for file in files), *(os.environ[name] for name in os.environ if name[:4] == "PIP_")])
    words = values.replace("=", " ").split()
    named = [Path(word) for word in words if word.startswith("/")]
    indexes = [Path(unquote(urlsplit(word).path)).parent for word in words if word.startswith("file:")]  # packages lie beside
    settings = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    places = {place for place in (*files, *named, *indexes) if place.exists()}
    return [
        *(f"--volume={one}:{one}:ro" for one in sorted(places)),
        *(f"--env={name}={value}" for name, value in settings.items()),
    ]


class Store:
    """Buildah's images and containers in one folder."""

    def __init__(self, folder: Path) -> None:
        self.options = ["--root", str(folder / "store"), "--runroot", str(folder / "run")]

    def __call__(self, *command: str, alone: Sequence[str] = ()) -> str:
        done = subprocess.run([*alone, "buildah", *self.options, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout.strip()


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """Yield a store with the base image and both of our images."""
    folder = Path(tempfile.mkdtemp(prefix="images-", dir="/var/tmp"))
    store = Store(folder)
    try:
        build(store, folder / "debian")
        yield store
    finally:
        store("rm", "--all")
        store("rmi", "--all", "--force")
        subprocess.run(["umount", "--lazy", str(folder / "store" / "overlay")], capture_output=True)
        shutil.rmtree(folder)


def build(store: Store, debian: Path) -> None:
    """Build a Debian base image, and both of our images on it."""
    include = "--include=python3,python3-venv,ca-certificates"
    subprocess.run(["debootstrap", "--variant=minbase", include, SUITE, str(debian)], check=True, capture_output=True)
    base = store("from", "scratch")
    store("copy", base, str(debian), "/")
    store("commit", "--rm", base, "base")
    for target in ("cpu", "gpu"):
        store(
            "bud", "--layers", *CHROOT, *pip_of_this_machine(), "--build-arg=BASE=localhost/base", f"--target={target}",
            f"--tag={target}", f"--file={ROOT / 'docker' / 'Dockerfile'}", str(ROOT),
        )  # fmt: skip
        print(f"{target}: {store('images', '--format', '{{.Size}}', target)}")


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_labels_and_starts_a_cluster(store: Store, target: str) -> None:
    container = store("from", target)

    def inside(*command: str) -> str:
        return store("run", *CHROOT, container, "--", *command, alone=OWN_PROCESSES)

    facts = json.loads(store("inspect", "--type", "image", target))["OCIv1"]
    assert facts["config"]["User"] == "fer" and facts["config"]["Entrypoint"] == ["fer-pipeline"]
    assert facts["config"]["Labels"]["org.opencontainers.image.title"] == "fer-pipeline"
    assert inside("id", "-u") == "1000"
    parts = {part["name"]: part["version"] for part in json.loads(inside("cat", "/opt/fer-pipeline/sbom.cdx.json"))["components"]}
    assert parts["torch"] and parts["ray"] == ray.__version__
    for tool in ("rsync", "ssh", "wget"):  # Ray's launcher copies with the first two, KubeRay probes with the third
        assert inside("which", tool)
    inside("fer-pipeline", "sample-archive", "archive", "--no-people")
    result = json.loads(inside("fer-pipeline", "label", "archive", "--out", "run", "--detector", "mtcnn"))["result"]
    assert sum(result["counts"].values()) == 36 and result["counts"]["undecodable"] == 2 and result["faces"] > 20
    clustered = json.loads(inside("bash", "-c", ON_A_CLUSTER).splitlines()[-1])["result"]
    assert clustered["counts"] == result["counts"] and clustered["faces"] == result["faces"]
    assert ("NVIDIA_VISIBLE_DEVICES=all" in facts["config"]["Env"]) == (target == "gpu")
