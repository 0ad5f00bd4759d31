"""Loaders of `benchmarks.data` that run in this project's environment.

    python -m benchmarks.data_loaders imf_ray EPISODES --count 20 --folder F --workers 1 ...

Each makes the same endless stream of shuffled batches. A window has two observations with all
cameras and sixteen actions. `imf_ray` reads through Ray Data into a worker of TorchTrainer, `h5py`
through a torch DataLoader over open files, `memory` from arrays in memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from benchmarks.batch_consumer import (
    ACTION_STEPS,
    BATCH,
    OBSERVED_STEPS,
    add_options,
    consume,
    loader_options,
)
from imf_ray.data.episodes import EpisodeFields, episode_path
from imf_ray.data.hdf5.layouts import IMAGES, QPOS
from imf_ray.data.windows import Batch, WindowSpec
from imf_ray.env_vars import prepare_environment
from imf_ray.schema import DataConfig
from testing_support.episodes import episode_refs

SEED = 0
MEMORY_BYTES = 6e9
"""Bytes of images that `memory` loads."""


def cameras_of(path: Path) -> tuple[str, ...]:
    """Return the cameras of an episode."""
    with h5py.File(path) as file:
        return tuple(file[IMAGES])


def spec_of(paths: list[Path]) -> WindowSpec:
    """Return the windows that all loaders make."""
    return WindowSpec(EpisodeFields(cameras_of(paths[0])), len(OBSERVED_STEPS), len(ACTION_STEPS))


def run_imf_ray(paths: list[Path], arguments: argparse.Namespace) -> None:
    """Load through Ray Data into a worker of TorchTrainer, as `imf_ray.train` does."""
    prepare_environment(own_cluster=True)

    import ray
    from ray.train import RunConfig
    from ray.train.torch import TorchTrainer

    from imf_ray.allocation import RolloutResources, RunResources
    from imf_ray.data.pipeline import TrainDataset
    from imf_ray.data.sampling import SamplePlan, choose_virtual_shards
    from imf_ray.training.trainer import scaling_config

    defaults = DataConfig()
    episodes = episode_refs(paths)
    plan = SamplePlan(
        lengths=tuple(episode.length for episode in episodes),
        batch_size=BATCH,
        virtual_shards=choose_virtual_shards(BATCH, 1, defaults.virtual_shards),
        read_block_steps=defaults.read_block_steps,
        shuffle_buffer_blocks=defaults.shuffle_buffer_blocks,
        seed=SEED,
    )
    spec = spec_of(paths)
    with h5py.File(paths[0]) as file:
        frame_bytes = sum(frames[0].nbytes for frames in file[IMAGES].values())
    stream = TrainDataset(
        plan=plan,
        spec=spec,
        episodes=episodes,
        frame_bytes=frame_bytes,
        max_steps=arguments.max_batches,
        read_concurrency=arguments.workers,
    )
    options = {key: getattr(arguments, key) for key in ("folder", "seconds", "step_s")}

    def loop(config: dict[str, Any]) -> None:
        batches = stream.batches(0, 1, 0)
        consume((_tensors(batch) for batch in batches), paths, **config)

    with tempfile.TemporaryDirectory(dir="/tmp") as temp_dir:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=temp_dir,
        )
        TorchTrainer(
            loop,
            train_loop_config=options,
            scaling_config=scaling_config(RunResources(1, 1, 1.0, 0.0, RolloutResources(1, 1.0))),
            run_config=RunConfig(name="loading", storage_path=temp_dir),
        ).fit()
        ray.shutdown()


class WindowDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """The straightforward dataset: one window per item, read from files that stay open."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._lengths = [episode.length for episode in episode_refs(paths)]
        self._ends = np.cumsum(self._lengths)
        self._cameras = cameras_of(paths[0])
        self._open: dict[int, h5py.File] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        length = self._lengths[number]
        step = index - (int(self._ends[number]) - length)
        if number not in self._open:
            self._open[number] = h5py.File(self._paths[number])
        file = self._open[number]
        first = max(step + OBSERVED_STEPS[0], 0)
        observed = np.clip(step + np.array(OBSERVED_STEPS), 0, None) - first
        steps = step + np.array(ACTION_STEPS)
        inside = np.clip(steps, 0, length - 1)
        return {
            "images": {
                camera: torch.from_numpy(file[f"{IMAGES}/{camera}"][first : step + 1][observed])
                for camera in self._cameras
            },
            "qpos": torch.from_numpy(file[QPOS][first : step + 1][observed]),
            "action": torch.from_numpy(
                file["action"][inside[0] : inside[-1] + 1][inside - inside[0]]
            ),
            "action_is_pad": torch.from_numpy(steps != inside),
        }


def h5py_batches(paths: list[Path], workers: int) -> Iterator[dict[str, Any]]:
    """Yield batches of a torch DataLoader, shuffled over the whole data set."""
    loader = torch.utils.data.DataLoader(WindowDataset(paths), **loader_options(workers))
    while True:
        yield from loader


def memory_batches(
    paths: list[Path],
    spec: WindowSpec,
    size: int = BATCH,
    seed: int = SEED,
    max_bytes: float = MEMORY_BYTES,
) -> Iterator[Batch]:
    """Yield windows copied from arrays in this process: the upper limit of any loader.

    Args:
        max_bytes: bytes of images; episodes are loaded until they exceed it.
    """
    cameras = spec.fields.cameras
    segments, num_bytes = [], 0
    for episode in episode_refs(paths):
        segments.append(spec.read(episode, 0, episode.length))
        num_bytes += sum(frames.nbytes for frames in segments[-1].images.values())
        if num_bytes > max_bytes:
            break
    segment_images = [dict(segment.images) for segment in segments]
    segments = [dataclasses.replace(segment, images={}) for segment in segments]
    images = {
        camera: np.concatenate([images.pop(camera) for images in segment_images])
        for camera in cameras
    }
    qpos, action = (
        np.concatenate([getattr(s, key) for s in segments]) for key in ("qpos", "action")
    )
    steps = np.concatenate([np.arange(segment.length) for segment in segments])
    lengths = np.concatenate([np.full(segment.length, segment.length) for segment in segments])
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(steps))
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            step, length = steps[chosen], lengths[chosen]
            starts = (chosen - step)[:, None]
            frames = starts + np.clip(spec.observation_indices(step), 0, None)
            action_steps = spec.action_indices(step)
            inside = np.clip(action_steps, 0, length[:, None] - 1)
            yield {
                "images": {camera: array[frames] for camera, array in images.items()},
                "qpos": qpos[frames],
                "action": action[starts + inside],
                "action_is_pad": action_steps != inside,
                "sample_id": chosen,
            }


def _tensors(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _tensors(value) if isinstance(value, dict) else torch.from_numpy(value)
        for key, value in batch.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("loader", choices=("imf_ray", "h5py", "memory"))
    parser.add_argument("episodes", type=Path)
    parser.add_argument("--count", type=int, required=True, help="number of episodes")
    parser.add_argument(
        "--max-batches", type=int, default=20_000, help="batches that imf_ray plans"
    )
    add_options(parser)
    arguments = parser.parse_args()
    paths = [episode_path(arguments.episodes, number) for number in range(arguments.count)]
    torch.set_num_threads(1)
    if arguments.loader == "imf_ray":
        run_imf_ray(paths, arguments)
        return
    batches = (
        h5py_batches(paths, arguments.workers)
        if arguments.loader == "h5py"
        else map(_tensors, memory_batches(paths, spec_of(paths)))
    )
    consume(batches, paths, arguments.folder, arguments.seconds, arguments.step_s)


if __name__ == "__main__":
    main()
