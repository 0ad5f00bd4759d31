"""LeRobotDataset as a loader of `benchmarks.data`; run by the Python of lerobot's environment.

    PYTHON -m benchmarks.lerobot_loader convert EPISODES TARGET --kind video --count 20
    PYTHON -m benchmarks.lerobot_loader load TARGET --folder F --workers 1 ...

It does not import imf_ray, so that the two environments may have different packages.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from benchmarks.batch_consumer import (
    ACTION_STEPS,
    OBSERVED_STEPS,
    add_options,
    consume,
    loader_options,
)

FPS = 50
REPO = "local/episodes"


def convert(episodes: Path, target: Path, kind: str, count: int) -> None:
    """Convert the first `count` episodes of a folder to a LeRobotDataset."""
    files = [episodes / f"episode_{number}.hdf5" for number in range(count)]
    with h5py.File(files[0]) as file:
        cameras = {name: frames.shape[1:] for name, frames in file["observations/images"].items()}
        vectors = {"observation.state": file["observations/qpos"].shape[1:]}
        vectors["action"] = file["action"].shape[1:]
    features: dict[str, Any] = {
        f"observation.images.{name}": {
            "dtype": kind,
            "shape": shape,
            "names": ["height", "width", "channels"],
        }
        for name, shape in cameras.items()
    }
    for name, shape in vectors.items():
        features[name] = {"dtype": "float32", "shape": shape, "names": None}
    dataset = LeRobotDataset.create(
        REPO, FPS, features, root=target, use_videos=kind == "video", image_writer_threads=2
    )
    for path in files:
        with h5py.File(path) as file:
            images = {name: file[f"observations/images/{name}"][:] for name in cameras}
            state, action = file["observations/qpos"][:], file["action"][:]
        for step in range(len(action)):
            frame: dict[str, Any] = {
                f"observation.images.{name}": frames[step] for name, frames in images.items()
            }
            frame |= {"observation.state": state[step], "action": action[step], "task": "transfer"}
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()


def batches(target: Path, workers: int) -> Iterator[dict[str, Any]]:
    """Yield shuffled windows forever, loaded as in LeRobot's training script."""
    times = [step / FPS for step in OBSERVED_STEPS]
    info = json.loads((target / "meta" / "info.json").read_text())
    observed = [name for name in info["features"] if name.startswith("observation.")]
    dataset = LeRobotDataset(
        REPO,
        root=target,
        delta_timestamps={
            **dict.fromkeys(observed, times),
            "action": [step / FPS for step in ACTION_STEPS],
        },
    )
    loader = torch.utils.data.DataLoader(dataset, **loader_options(workers))
    while True:
        yield from loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    converting = commands.add_parser("convert")
    converting.add_argument("episodes", type=Path)
    converting.add_argument("target", type=Path)
    converting.add_argument("--kind", choices=("video", "image"), required=True)
    converting.add_argument("--count", type=int, required=True)
    loading = commands.add_parser("load")
    loading.add_argument("target", type=Path)
    add_options(loading)
    arguments = parser.parse_args()
    if arguments.command == "convert":
        convert(arguments.episodes, arguments.target, arguments.kind, arguments.count)
    else:
        stream = batches(arguments.target, arguments.workers)
        files = [path for path in arguments.target.rglob("*") if path.is_file()]
        consume(stream, files, arguments.folder, arguments.seconds, arguments.step_s)


if __name__ == "__main__":
    main()
