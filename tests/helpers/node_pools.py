"""Trains on three local nodes, one per pool, and prints which processes ran on each.

`python -m tests.helpers.node_pools RUN_DIR DATA` prints JSON as its last line: the titles of the
processes of each pool.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from pathlib import Path

import psutil
import ray
from ray.cluster_utils import Cluster

from imf_ray.allocation import allocate_run
from imf_ray.cluster import POOLS, init_ray
from imf_ray.training.run_dir import RunDir
from imf_ray.training.trainer import fit, prepare_run
from tests.helpers.configs import tiny_config

POLL_INTERVAL_S = 0.1


def watch(raylets: dict[str, int], titles: dict[str, set[str]], ended: threading.Event) -> None:
    """Collect the titles of the processes of each raylet until the run has ended."""
    while not ended.wait(POLL_INTERVAL_S):
        for pool, pid in raylets.items():
            for child in psutil.Process(pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    titles[pool] |= set(child.cmdline()[:1])


def main(run_dir: Path, data: str) -> None:
    """Train, and print the processes of each pool."""
    cluster = Cluster()
    nodes = {
        pool: cluster.add_node(num_cpus=2, labels={"pool": pool}, include_dashboard=False)
        for pool in POOLS
    }
    raylets = {pool: node.all_processes["raylet"][0].process.pid for pool, node in nodes.items()}
    config = tiny_config(
        data,
        f"cluster.address={cluster.address}",
        "cluster.node_pool_label=pool",
        "train.max_steps=20",
        "train.rollout_val_freq_epochs=1000",
    )
    resources = allocate_run(config, init_ray(config))
    titles: dict[str, set[str]] = {pool: set() for pool in POOLS}
    ended = threading.Event()
    watcher = threading.Thread(target=watch, args=(raylets, titles, ended))
    watcher.start()
    try:
        fit(prepare_run(config), RunDir(run_dir), resources)
    finally:
        ended.set()
        watcher.join()
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps({pool: sorted(names) for pool, names in titles.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
