"""Trains on two local nodes, one of which is taken away in the middle.

`python -m tests.training.two_nodes RUN_DIR DATA killed|drained` kills the second node at a step, or
has it drained first, as a cloud does with a spot instance.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from imf_ray.resources import RunResources
from imf_ray.training.checkpoint import list_checkpoints
from imf_ray.training.tracking import METRICS_FILE, read_metrics
from imf_ray.training.trainer import check_run, fit
from tests.conftest import WORKER_ENVIRONMENT, tiny_config

NODE = {"num_cpus": 2, "num_gpus": 2}
RESOURCES = RunResources(4, 0.2, 1.0, 1, 0.1, fewest_workers=2)
LOST_AT, NOTICE_S = 5, 30
STEPS = {"killed": 80, "drained": 400}
RAY = str(Path(sys.executable).parent / "ray")


def take_away(cluster: Cluster, node: object, run_dir: Path, drain: bool) -> None:
    """Once the run has come to a step, drain the node if wanted, and kill it."""
    while not any(line["step"] >= LOST_AT for line in read_metrics(run_dir / METRICS_FILE)):
        time.sleep(0.05)
    if drain:
        options = {
            "address": cluster.address,
            "node-id": node.node_id,  # type: ignore[attr-defined]
            "reason": "DRAIN_NODE_REASON_PREEMPTION",
            "reason-message": "a test",
            "deadline-remaining-seconds": NOTICE_S,
        }
        before = len(list_checkpoints(run_dir))
        command = [f"--{key}={value}" for key, value in options.items()]
        subprocess.run([RAY, "drain-node", *command], check=True, capture_output=True)
        until = time.monotonic() + NOTICE_S
        while len(list_checkpoints(run_dir)) == before and time.monotonic() < until:
            time.sleep(0.1)
    cluster.remove_node(node, allow_graceful=False)


def main(run_dir: Path, data: str, mode: str) -> None:
    """Carry out the run; it has four workers at first, and needs two."""
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    node = cluster.add_node(**NODE)
    ray.init(
        address=cluster.address, runtime_env={"env_vars": WORKER_ENVIRONMENT}, log_to_driver=False
    )
    config = tiny_config(
        data,
        *("cluster.num_workers=2..4", f"train.max_steps={STEPS[mode]}", "train.log_samples=true"),
        f"train.save_freq={3 if mode == 'killed' else 1000}",
    )
    thief = threading.Thread(target=take_away, args=(cluster, node, run_dir, mode == "drained"))
    thief.start()
    fit(check_run(config), run_dir, RESOURCES)
    thief.join()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
