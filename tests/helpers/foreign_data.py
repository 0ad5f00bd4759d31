"""Writers of small data sets as LeRobot v2.1, robomimic and Diffusion Policy store them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from tests.helpers.episode_files import HEIGHT, LENGTH, WIDTH, smooth_images

FPS, STATE_DIM, ACTION_DIM = 10, 5, 4
CAMERA = "observation.images.top"
JOINT_NAMES = [[f"joint_{index}" for index in range(STATE_DIM)]]  # nested, as some recorders do


def vectors(seed: int, dim: int) -> np.ndarray:
    """Return random vectors (LENGTH, dim) float32."""
    return np.random.default_rng(seed).normal(size=(LENGTH, dim)).astype(np.float32)


def write_video(path: Path, images: np.ndarray, codec: str = "libx264", fps: int = FPS) -> None:
    """Encode images (T, H, W, 3) uint8 as a video."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"g": "4"})
        stream.width, stream.height, stream.pix_fmt = images.shape[2], images.shape[1], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_lerobot_v21(
    folder: Path,
    episodes: int = 2,
    names: tuple[str, str, str] = ("observation.state", "action", CAMERA),
    codec: str = "libx264",
) -> None:
    """Write a LeRobot data set of v2.1: a table and a video per episode, variable-length lists."""
    state, action, camera = names
    meta = folder / "meta"
    meta.mkdir(parents=True)
    features = {
        state: {"dtype": "float32", "shape": [STATE_DIM], "names": JOINT_NAMES},
        action: {"dtype": "float32", "shape": [ACTION_DIM], "names": None},
        camera: {
            "dtype": "video",
            "shape": [HEIGHT, WIDTH, 3],
            "names": ["height", "width", "channel"],
            "info": {"video.codec": {"libx264": "h264"}.get(codec, codec), "video.fps": FPS},
        },
        **{
            name: {"dtype": dtype, "shape": [1], "names": None}
            for name, dtype in (
                ("timestamp", "float32"),
                ("frame_index", "int64"),
                ("episode_index", "int64"),
                ("index", "int64"),
                ("task_index", "int64"),
            )
        },
    }
    info = {
        "codebase_version": "v2.1",
        "robot_type": "arm",
        "fps": FPS,
        "total_episodes": episodes,
        "chunks_size": 1000,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/"
        "episode_{episode_index:06d}.mp4",
        "features": features,
    }
    (meta / "info.json").write_text(json.dumps(info))
    lines = [
        json.dumps({"episode_index": number, "tasks": ["push"], "length": LENGTH})
        for number in range(episodes)
    ]
    (meta / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    for number in range(episodes):
        write_table(
            folder,
            number,
            {state: vectors(number, STATE_DIM), action: vectors(9 + number, ACTION_DIM)},
        )
        write_video(video_path(folder, number, camera), smooth_images(number), codec)


def table_path(folder: Path, number: int) -> Path:
    """Return the path of an episode's table."""
    return folder / f"data/chunk-000/episode_{number:06d}.parquet"


def video_path(folder: Path, number: int, camera: str = CAMERA) -> Path:
    """Return the path of an episode's video."""
    return folder / f"videos/chunk-000/{camera}/episode_{number:06d}.mp4"


def write_table(
    folder: Path,
    number: int,
    values: dict[str, np.ndarray],
    times: Sequence[float] | None = None,
) -> None:
    """Write the table of an episode of v2.1."""
    length = len(next(iter(values.values())))
    steps = np.arange(length)
    columns = {
        **{name: pa.array(list(array), pa.list_(pa.float32())) for name, array in values.items()},
        "timestamp": pa.array(steps / FPS if times is None else times, pa.float32()),
        "frame_index": pa.array(steps, pa.int64()),
        "episode_index": pa.array(np.full(length, number), pa.int64()),
        "index": pa.array(number * LENGTH + steps, pa.int64()),
        "task_index": pa.array(np.zeros(length, np.int64)),
    }
    path = table_path(folder, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_robomimic(path: Path, episodes: int = 3) -> None:
    """Write a file of robomimic with two cameras, next observations and masks."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(
            {"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20}}
        )
        for number in range(episodes):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = LENGTH
            demo["actions"] = vectors(number, ACTION_DIM).astype(np.float64)
            demo["states"] = vectors(30 + number, 9)
            for group in ("obs", "next_obs"):
                for seed, (name, dim) in enumerate(ROBOT_STATE.items()):
                    demo[f"{group}/{name}"] = vectors(10 * seed + number, dim).astype(np.float64)
                demo[f"{group}/agentview_image"] = smooth_images(number)
                demo[f"{group}/robot0_eye_in_hand_image"] = smooth_images(100 + number)
        names = np.array([f"demo_{number}" for number in range(episodes)], "S8")
        file["mask/train"], file["mask/valid"] = names[:-1], names[-1:]


ROBOT_STATE = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
"""Widths of the vectors that robomimic takes as the state, by name."""


def write_diffusion_policy(path: Path, episodes: int = 3) -> None:
    """Write a zarr data set of Diffusion Policy, whose chunks contain parts of two episodes."""
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    images = np.concatenate([smooth_images(number) for number in range(episodes)])
    arrays = {
        "state": np.concatenate([vectors(number, STATE_DIM) for number in range(episodes)]),
        "action": np.concatenate([vectors(9 + number, 2) for number in range(episodes)]),
        "keypoint": np.concatenate([vectors(20 + n, 6) for n in range(episodes)]).reshape(-1, 3, 2),
        "img": images.astype(np.float32),
    }
    for name, values in arrays.items():
        array = root.create_array(
            f"data/{name}", shape=values.shape, chunks=(7, *values.shape[1:]), dtype=values.dtype
        )
        array[:] = values
    ends = np.arange(1, episodes + 1) * LENGTH
    root.create_array("meta/episode_ends", shape=ends.shape, dtype=ends.dtype)[:] = ends
