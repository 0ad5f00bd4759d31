"""Trains on two local nodes, one of which goes, or comes, in the middle.

`python -m tests.helpers.two_nodes RUN_DIR DATA killed|drained|added` kills the second node at a
step, has it drained first, as a cloud does with a spot instance, or adds it then.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from imf_ray.allocation import RolloutResources, RunResources
from imf_ray.training.run_dir import RunDir
from imf_ray.training.tracking import RESTARTS
from imf_ray.training.trainer import fit, prepare_run
from tests.helpers.configs import tiny_config

NODE = {"num_cpus": 2, "num_gpus": 2}
RESOURCES = RunResources(2, 4, 0.2, 1.0, RolloutResources(1, 0.1))
CHANGE_AT, NOTICE_S = 5, 30
STEPS = {"killed": 80, "drained": 400, "added": 100_000}
SAVE_FREQ = {"killed": 3, "drained": 1000, "added": 20}
"""Where a node is drained, the notice alone leads to a checkpoint."""
ENOUGH = 20
"""Updates after those with which the run goes on when a node was added; it is stopped then."""
RAY = str(Path(sys.executable).parent / "ray")


def wait_for_step(run_dir: Path, step: int, starts: int) -> None:
    """Wait until the run has been started so often and has come to a step."""
    while True:
        lines = RunDir(run_dir).read_metrics()
        started = [line["step"] for line in lines if RESTARTS in line]
        if len(started) >= starts and lines[-1]["step"] >= started[starts - 1] + step:
            return
        time.sleep(0.05)


def add(cluster: Cluster, run_dir: Path, at_the_end: contextlib.ExitStack) -> None:
    """Once the run has come to a step, add a node, and stop the run when it makes use of it."""
    wait_for_step(run_dir, CHANGE_AT, starts=1)
    # `Cluster.add_node` handles signals, which is for the main thread alone.
    options = [f"--{key.replace('_', '-')}={value}" for key, value in NODE.items()]
    command = [RAY, "start", f"--address={cluster.address}", "--block", *options]
    node = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    at_the_end.callback(node.wait)
    at_the_end.callback(node.terminate)
    wait_for_step(run_dir, ENOUGH, starts=2)
    RunDir(run_dir).request_stop()


def take_away(cluster: Cluster, node: object, run_dir: Path, drain: bool) -> None:
    """Once the run has come to a step, drain the node if wanted, and kill it."""
    wait_for_step(run_dir, CHANGE_AT, starts=1)
    if drain:
        options = {
            "address": cluster.address,
            "node-id": node.node_id,  # type: ignore[attr-defined]
            "reason": "DRAIN_NODE_REASON_PREEMPTION",
            "reason-message": "a test",
            "deadline-remaining-seconds": NOTICE_S,
        }
        before = len(RunDir(run_dir).list_checkpoints())
        command = [f"--{key}={value}" for key, value in options.items()]
        subprocess.run([RAY, "drain-node", *command], check=True, capture_output=True)
        until = time.monotonic() + NOTICE_S
        while len(RunDir(run_dir).list_checkpoints()) == before and time.monotonic() < until:
            time.sleep(0.1)
    cluster.remove_node(node, allow_graceful=False)


def main(run_dir: Path, data: str, mode: str) -> None:
    """Carry out the run; it takes up to four workers, and needs two."""
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    node = None if mode == "added" else cluster.add_node(**NODE)
    ray.init(address=cluster.address, log_to_driver=False)
    config = tiny_config(
        data,
        *(
            "cluster.num_workers=2..4",
            f"train.max_steps={STEPS[mode]}",
            "train.log_sample_ids=true",
        ),
        f"train.save_freq={SAVE_FREQ[mode]}",
    )
    with contextlib.ExitStack() as at_the_end:
        change: tuple[Any, ...] = (take_away, cluster, node, run_dir, mode == "drained")
        if mode == "added":
            change = (add, cluster, run_dir, at_the_end)
        changer = threading.Thread(target=change[0], args=change[1:], daemon=True)
        changer.start()
        fit(prepare_run(config), RunDir(run_dir), RESOURCES)
        changer.join()
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
