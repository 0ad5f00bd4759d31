"""Runs a sweep on an autoscaling cluster whose first node fits the workers of one trial.

`python -m tests.helpers.autoscaling_cluster FOLDER DATASET_DIR` prints a JSON list as its last
line: the number of worker nodes at the start, and the maximum. Nodes are local raylets that Ray's
own autoscaler starts.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FakeMultiNodeProvider,
)

from imf_ray.cluster import HEAD_NODE_RESOURCE
from tests.helpers.commands import COMMAND_TIMEOUT_S
from tests.helpers.configs import TINY_AGENT, TINY_TRAINING

RAY = str(Path(sys.executable).parent / "ray")
MAX_NODES, NODE_CPUS = 2, 2
START_TIMEOUT_S, POLL_S = 120.0, 0.5
SPACE = """
fixed:
  agent: resnet_imf_attnres_multitoken
  agent.head.n_head: 2
grid:
  agent.head.n_emb: [16, 24]
"""


def autoscaler_config(address: str) -> dict[str, Any]:
    """Make the configuration of a head without CPUs and small nodes, one of which always runs."""
    return {
        "cluster_name": "autoscaling",
        "max_workers": MAX_NODES,
        "provider": {
            "type": "external",  # type `fake_multinode` needs a file that Ray's wheel lacks
            "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": address,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": NODE_CPUS},
                "node_config": {},
                "min_workers": 1,
                "max_workers": MAX_NODES,
            },
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 1,
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


def free_port() -> int:
    """Return a port that is not in use."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def start_head(folder: Path, address: str) -> subprocess.Popen[bytes]:
    """Start a head node with an autoscaler in a process group of its own.

    Args:
        folder: folder of Ray's files and the log.
    """
    config = folder / "autoscaling.json"
    config.write_text(json.dumps(autoscaler_config(address)))
    env = os.environ | {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    command = [RAY, "start", "--head", "--block", "--num-cpus=0"]
    command += [f"--port={address.rpartition(':')[2]}", f"--temp-dir={folder}"]
    command += [f"--autoscaling-config={config}", "--include-dashboard=false"]
    log = (folder / "head.log").open("wb")
    return subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)


def count_worker_nodes() -> int:
    """Return the number of nodes, not counting the head."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return sum(HEAD_NODE_RESOURCE not in node["Resources"] for node in nodes)


def connect(address: str) -> None:
    """Connect to the head and wait for its first worker node."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            ray.init(address=address, log_to_driver=False)
            break
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
    while count_worker_nodes() < 1:
        if time.monotonic() > deadline:
            raise TimeoutError("the autoscaler started no node")
        time.sleep(POLL_S)


def main(folder: Path, dataset_dir: str) -> None:
    """Start the cluster, run the sweep, and print the initial and maximum number of nodes."""
    address = f"{ray.util.get_node_ip_address()}:{free_port()}"
    (folder / "space.yaml").write_text(SPACE)
    varied = ("agent.head.n_emb", "agent.head.n_head", "cluster.include_dashboard")
    options = [o for o in (*TINY_AGENT, *TINY_TRAINING) if not o.startswith(varied)]
    options += [f"search_space={folder}/space.yaml", f"data.dataset_dir={dataset_dir}"]
    options += [f"storage_path={folder}/runs", "run_name=sweep", "task.max_episode_steps=60"]
    options += [f"cluster.address={address}", f"cluster.autoscale_max_nodes={MAX_NODES}"]
    # The first node fits the rollout actors of both trials and one worker.
    options += [f"tune.min_cpus_per_trial={NODE_CPUS}", "cluster.cpus_per_worker=0.9"]
    options.append("cluster.cpus_per_rollout_actor=0.2")
    # The socket paths inside Ray's folder are limited to 107 characters.
    ray_folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    head = start_head(Path(ray_folder), address)
    try:
        connect(address)
        num_first = num_max = count_worker_nodes()
        sweep = subprocess.Popen([sys.executable, "-m", "imf_ray.tune", *options])
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while sweep.poll() is None and time.monotonic() < deadline:
            num_max = max(num_max, count_worker_nodes())
            time.sleep(POLL_S)
        if sweep.returncode != 0:
            sweep.kill()
            raise SystemExit(f"the sweep ended with {sweep.returncode}")
        ray.shutdown()
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait()
        shutil.rmtree(ray_folder, ignore_errors=True)
    print(json.dumps([num_first, num_max]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
