"""Trains on two local nodes, one of which is lost or added during the run.

`python -m tests.helpers.two_nodes RUN_DIR DATA killed|drained|added` changes the second node after
`CHANGE_AT` updates. `killed` kills it. `drained` first drains it, as a cloud does with a spot
instance. `added` adds it.
"""

from __future__ import annotations

import contextlib
import os
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
from imf_ray.training.run_records import RESTARTS
from imf_ray.training.trainer import fit, prepare_run
from tests.helpers.configs import tiny_config

NODE = {"num_cpus": 2, "num_gpus": 2}
RESOURCES = RunResources(2, 4, 0.2, 1.0, RolloutResources(1, 0.1))
CHANGE_AT, NOTICE_S = 5, 30
"""Updates before the change, and seconds between the drain and the end of the node."""
STEPS = {"killed": 80, "drained": 400, "added": 100_000}
SAVE_FREQ = {"killed": 3, "drained": 1000, "added": 20}
"""Updates between checkpoints. In `drained`, only the notice of the drain leads to a checkpoint."""
STEPS_AFTER_ADDED = 20
"""Updates after the restart with the added node; then the run is stopped."""
RAY = str(Path(sys.executable).parent / "ray")
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "1"  # as on a cluster that the user starts


def wait_for_updates(run_dir: Path, num_updates: int, launches: int) -> None:
    """Wait until the run was launched this many times and has made updates since the last one."""
    while True:
        lines = RunDir(run_dir).read_metrics()
        first_steps = [line["step"] for line in lines if RESTARTS in line]
        launched = len(first_steps) >= launches
        if launched and lines[-1]["step"] >= first_steps[launches - 1] + num_updates:
            return
        time.sleep(0.05)


def add_node(cluster: Cluster, run_dir: Path, at_the_end: contextlib.ExitStack) -> None:
    """Add a node during the run, and stop the run some updates after it uses the node."""
    wait_for_updates(run_dir, CHANGE_AT, launches=1)
    # `Cluster.add_node` handles signals, which only the main thread may do.
    options = [f"--{key.replace('_', '-')}={value}" for key, value in NODE.items()]
    command = [RAY, "start", f"--address={cluster.address}", "--block", *options]
    node = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    at_the_end.callback(node.wait)
    at_the_end.callback(node.terminate)
    wait_for_updates(run_dir, STEPS_AFTER_ADDED, launches=2)
    RunDir(run_dir).request_stop()


def remove_node(cluster: Cluster, node: object, run_dir: Path, drain: bool) -> None:
    """Kill a node during the run. If `drain` is set, drain it before."""
    wait_for_updates(run_dir, CHANGE_AT, launches=1)
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
    """Train with two to four workers."""
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
        change: tuple[Any, ...] = (remove_node, cluster, node, run_dir, mode == "drained")
        if mode == "added":
            change = (add_node, cluster, run_dir, at_the_end)
        changer = threading.Thread(target=change[0], args=change[1:], daemon=True)
        changer.start()
        fit(prepare_run(config), RunDir(run_dir), RESOURCES)
        changer.join()
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
