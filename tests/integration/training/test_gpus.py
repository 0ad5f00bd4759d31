"""GPU ids of training workers, one GPU each or shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ray import tune
from ray.train import CheckpointConfig, RunConfig
from ray.train.torch import TorchConfig, TorchTrainer

from imf_ray.allocation import RolloutResources, RunResources
from imf_ray.training.trainer import scaling_config

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_each_worker_of_a_trial_gets_its_own_gpu(tmp_path: Path) -> None:
    resources = RunResources(2, 2, 0.5, 1.0, RolloutResources(1, 0.5))
    assert sorted(_gpus_of_workers(resources, tmp_path, "own")) == [["0"], ["1"]]


@pytest.mark.slow
def test_two_trials_with_half_a_gpu_each_share_a_gpu(tmp_path: Path) -> None:
    """Four trials with half a GPU each run in parallel on two logical GPUs."""
    resources = RunResources(1, 1, 0.5, 0.5, RolloutResources(1, 0.5))
    barrier = tmp_path / "barrier"
    barrier.mkdir()

    def trial(params: dict[str, Any]) -> None:
        gpus = _gpus_of_workers(resources, tmp_path, f"half-{params['number']}", str(barrier))
        tune.report({"gpus": gpus[0]})

    driver = tune.PlacementGroupFactory([{"CPU": 0.05}])
    results = tune.Tuner(
        tune.with_resources(trial, driver),
        param_space={"number": tune.grid_search([0, 1, 2, 3])},
        run_config=tune.RunConfig(name="halves", storage_path=str(tmp_path), verbose=0),
    ).fit()
    assert sorted(result.metrics["gpus"] for result in results) == [["0"], ["0"], ["1"], ["1"]]


def _gpus_of_workers(
    resources: RunResources, folder: Path, name: str, barrier: str | None = None
) -> list[list[str]]:
    """Return the GPU ids of each worker. With a `barrier` folder, four workers synchronize."""

    def loop(train_loop_config: dict[str, Any]) -> list[list[str]]:
        import time

        import ray
        import ray.train

        if train_loop_config["barrier"] is not None:
            folder = Path(train_loop_config["barrier"])
            (folder / ray.train.get_context().get_experiment_name()).touch()
            while len(list(folder.iterdir())) < 4:
                time.sleep(0.1)
        gpu_ids = list(ray.get_runtime_context().get_accelerator_ids()["GPU"])
        world_size = ray.train.get_context().get_world_size()
        if world_size == 1:
            return [gpu_ids]
        gathered: list[Any] = [None] * world_size
        torch.distributed.all_gather_object(gathered, gpu_ids)
        return gathered

    trainer = TorchTrainer(
        loop,
        train_loop_config={"barrier": barrier},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=scaling_config(resources),
        run_config=RunConfig(
            name=name, storage_path=str(folder), checkpoint_config=CheckpointConfig()
        ),
    )
    return trainer.fit().return_value
