"""Trains on two local nodes that share no folder with each other or with the driver.

`python -m tests.helpers.no_shared_folder URL DATA CACHES`: the run folder is URL/run. Its local
copies are in CACHES/{head,node,driver}.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from imf_ray.allocation import RolloutResources, RunResources
from imf_ray.storage import local_dir
from imf_ray.training.run_dir import RunDir
from imf_ray.training.trainer import fit, prepare_run
from tests.helpers.configs import tiny_config

NODE = {"num_cpus": 2, "num_gpus": 1}
RESOURCES = RunResources(2, 2, 0.2, 1.0, RolloutResources(1, 0.1))


def main(url: str, data: str, caches: Path) -> None:
    """Train with one worker per node."""

    def use_cache_of(machine: str) -> None:  # inherited by processes that are started later
        os.environ["XDG_CACHE_HOME"] = str(caches / machine)

    use_cache_of("head")
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    use_cache_of("node")
    cluster.add_node(**NODE)
    use_cache_of("driver")
    ray.init(address=cluster.address, log_to_driver=False)
    config = tiny_config(
        data,
        *("cluster.num_workers=2", "train.max_steps=8", "train.save_freq=2"),
        *("train.rollout_validate_on_checkpoint=true", "task.max_episode_steps=60"),
    )
    fit(prepare_run(config), RunDir(local_dir(url) / "run"), RESOURCES)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
