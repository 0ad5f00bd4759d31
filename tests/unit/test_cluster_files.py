"""The files for clusters: Ray and KubeRay accept them, and nodes are set up as documented."""

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config

from imf_ray.cluster import POOLS
from imf_ray.config import load_config
from tests.helpers import REPO_ROOT

ROOT = REPO_ROOT
SYSTEM_LIBRARIES = "libegl1 libgl1-mesa-dri libopengl0 g++ python3-dev"

Fields = tuple[set[str], set[str]]
# Fields of KubeRay 1.5's RayJob and RayCluster: (required, optional).
RAY_JOB: Fields = (
    {"entrypoint", "rayClusterSpec"},
    {"runtimeEnvYAML", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"},
)
RAY_CLUSTER: Fields = (
    {"headGroupSpec"},
    {
        "rayVersion",
        "authOptions",
        "autoscalerOptions",
        "enableInTreeAutoscaling",
        "workerGroupSpecs",
    },
)
HEAD_GROUP: Fields = ({"template"}, {"rayStartParams"})
WORKER_GROUP: Fields = (
    {"groupName", "minReplicas", "maxReplicas", "template"},
    {"replicas", "labels", "rayStartParams"},
)


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", ["cluster.yaml", "deploy/aws.yaml"])
def test_ray_accepts_the_cluster_file(name: str) -> None:
    prepared = prepare_config(read(name))
    validate_config(prepared)


def test_a_local_cluster_expects_exactly_its_machines() -> None:
    config = read("cluster.yaml")
    assert config["min_workers"] == config["max_workers"] == len(config["provider"]["worker_ips"])


@pytest.mark.parametrize("name", ["cluster.yaml", "deploy/aws.yaml"])
def test_nodes_are_set_up_as_documented(name: str) -> None:
    config = read(name)
    quickstart, cluster = (
        (ROOT / "docs" / f"{page}.md").read_text() for page in ("quickstart", "cluster")
    )
    commands = "\n".join(config["setup_commands"])
    assert SYSTEM_LIBRARIES in commands and SYSTEM_LIBRARIES in quickstart
    assert "make -C ~/imf_ray setup" in commands and "\nsetup: " in (ROOT / "Makefile").read_text()
    for kind in ("head", "worker"):
        start = "\n".join(config[f"{kind}_start_ray_commands"])
        assert "RAY_AUTH_MODE=token" in start and "RAY_AUTH_MODE=token" in cluster
    # Without the token a new node cannot join.
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--dashboard-host=127.0.0.1" in "\n".join(config["head_start_ray_commands"])
    assert not {"/data", "/runs", ".git"} - set(config["rsync_exclude"])


def test_kuberay_accepts_the_job() -> None:
    def check(value: dict[str, Any], fields: Fields) -> dict[str, Any]:
        required, optional = fields
        assert required <= set(value) <= required | optional
        return value

    job = read("deploy/rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob") and job["metadata"]["name"]
    spec = check(job["spec"], RAY_JOB)
    cluster = check(spec["rayClusterSpec"], RAY_CLUSTER)
    assert cluster["authOptions"] == {"mode": "token"}
    requirements = (ROOT / "requirements.txt").read_text()
    assert f"=={cluster['rayVersion']}" in requirements
    groups = [check(group, WORKER_GROUP) for group in cluster["workerGroupSpecs"]]
    for group in [check(cluster["headGroupSpec"], HEAD_GROUP), *groups]:
        (container,) = group["template"]["spec"]["containers"]
        assert container["name"] and container["image"] and container["resources"]["limits"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for group in groups:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]

    python, m, module, *overrides = spec["entrypoint"].split()
    assert (python, m, module) == ("python", "-m", "imf_ray.tune")
    config = load_config(overrides)
    label = config.cluster.node_pool_label
    assert config.resume == "auto" and {g["labels"][label] for g in groups} == set(POOLS)


def test_own_machines_are_in_a_pool() -> None:
    config, label = read("cluster.yaml"), load_config(["cluster=pools"]).cluster.node_pool_label
    for kind in ("head", "worker"):
        start = "\n".join(config[f"{kind}_start_ray_commands"])
        assert f"--labels={label}=$(cat ~/imf_ray_pool || echo train)" in start
    assert 1 + len(config["provider"]["worker_ips"]) >= len(POOLS)  # every pool has a machine


def test_the_image_is_set_up_like_a_node_and_contains_no_data() -> None:
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    for library in SYSTEM_LIBRARIES.split():
        assert library in dockerfile
    assert "RUN make setup VENV=/opt/venv" in dockerfile
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "data", "runs"} <= set(ignored)


def test_pools_on_aws_match_the_configuration() -> None:
    label = load_config(["cluster=pools"]).cluster.node_pool_label
    kinds = read("deploy/aws.yaml")["available_node_types"].values()
    assert {kind["labels"][label] for kind in kinds if "labels" in kind} == set(POOLS)


def test_a_job_submission_does_not_upload_data(tmp_path: Path) -> None:
    """Ray packs the code of such a folder, but no data."""
    code = ["imf_ray/tune.py", "imf_ray/data/index.py", "search_spaces/asha.yaml"]
    excluded = [
        "data/a/episode_0.hdf5",
        "data/list.txt",
        "runs/a/metrics.jsonl",
        "x/episode_1.hdf5",
    ]
    excluded += [".git/HEAD", ".venv/bin/python", "docs/LOG.md", "tests/test_x.py"]
    for name in (*code, *excluded):
        path = tmp_path / "repo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    excludes = read("runtime_env.yaml")["excludes"]
    package = tmp_path / "package.zip"
    create_package(str(tmp_path / "repo"), package, include_gitignore=True, excludes=excludes)
    names = {name for name in ZipFile(package).namelist() if not name.endswith("/")}
    assert names == set(code)
