"""One episode, one HDF5 file, in ACT's layout with a few attributes more.

    /observations/images/{camera}  (T, H, W, 3) uint8 RGB, one HDF5 chunk a frame
    /observations/qpos             (T, D_state) float32
    /observations/qvel             (T, D_state) float32, optional
    /observations/poses/{object}   (T, 7) float32, xyz in m and quaternion wxyz, optional
    /action                        (T, D_action) float32, joint targets or the task's own actions
    /action_ee                     (T, D_action) float32, end-effector targets, optional

Observation t is the one before action t. The root attributes say what shapes cannot: the task, the
action space of `/action`, the control rate, the seed, the outcome and the render flags.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from imf_ray.errors import UserError
from imf_ray.files import move_into_place

SUFFIX = ".hdf5"
POSES = "observations/poses"
ACTION_DATASETS = {"joint": "action", "ee": "action_ee"}


@dataclass(frozen=True)
class EpisodeAttributes:
    """What the file says of itself in its root attributes."""

    task: str
    action_space: str
    control_hz: int
    camera_names: tuple[str, ...]
    seed: int
    success: bool
    max_reward: float
    shadows: bool
    multisampling: bool
    version: str
    sim: bool = True


@dataclass(frozen=True)
class Episode:
    """A whole episode in memory: images {camera: (T, H, W, 3) uint8}, the rest (T, D) float32."""

    images: Mapping[str, np.ndarray]
    qpos: np.ndarray
    qvel: np.ndarray | None
    action: np.ndarray
    action_ee: np.ndarray | None
    poses: Mapping[str, np.ndarray]
    """True poses (T, 7) by object: what a policy without eyes is told."""
    attributes: EpisodeAttributes


@dataclass(frozen=True)
class EpisodeInfo:
    """What a checked file holds: an index row."""

    path: str
    length: int
    cameras: Mapping[str, tuple[int, int]]
    """Image height and width by camera."""
    state_dim: int
    action_dim: int
    datasets: tuple[str, ...]
    """The action datasets present: `action`, `action_ee`."""
    objects: tuple[str, ...]
    """Objects whose poses are recorded."""
    attributes: Mapping[str, Any]
    """Root attributes as plain values; empty for files without them."""


@dataclass(frozen=True)
class EpisodeSlice:
    """Consecutive steps of one episode: what one read brings, and what windows are cut from.

    `images` {camera: (F, H, W, 3) uint8} and `qpos` (F, D; with the poses that were asked for
    behind it) begin at step `frame_start`; `action`
    (A, D) begins at step `action_start`; `length` is the whole episode's.
    """

    length: int
    frame_start: int
    action_start: int
    images: Mapping[str, np.ndarray]
    qpos: np.ndarray
    action: np.ndarray


def episode_path(folder: Path, number: int) -> Path:
    """Where episode `number` of a data set lies."""
    return folder / f"episode_{number}{SUFFIX}"


def write_episode(path: Path, episode: Episode) -> None:
    """Write the file atomically: under a temporary name, synced, then renamed.

    Every dataset carries a Fletcher-32 checksum, so that a flipped byte fails on reading.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with h5py.File(partial, "w") as file:
            for name, value in asdict(episode.attributes).items():
                file.attrs[name] = json.dumps(value) if name == "camera_names" else value
            for camera, frames in episode.images.items():
                file.create_dataset(
                    f"observations/images/{camera}",
                    data=frames,
                    chunks=(1, *frames.shape[1:]),
                    fletcher32=True,
                )
            for name, values in (
                ("observations/qpos", episode.qpos),
                ("observations/qvel", episode.qvel),
                ("action", episode.action),
                ("action_ee", episode.action_ee),
                *((f"{POSES}/{name}", poses) for name, poses in episode.poses.items()),
            ):
                if values is not None:
                    file.create_dataset(
                        name, data=values.astype(np.float32), chunks=values.shape, fletcher32=True
                    )
        move_into_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_episode(path: Path) -> EpisodeInfo:
    """Read the whole file once and describe it.

    Raises:
        UserError: the file cannot be read, or a shape, dtype, length or value in it is wrong; the
            message names the file and the reason.
    """
    try:
        with h5py.File(path, "r") as file:
            return _describe(path, file)
    except (OSError, KeyError, RuntimeError) as error:
        reason = str(error).strip("'\"").splitlines()[0]
        raise bad_episode(path, f"it cannot be read as an HDF5 episode ({reason})") from error


def read_slice(
    path: str,
    cameras: Sequence[str],
    objects: Sequence[str],
    action_dataset: str,
    frames: tuple[int, int],
    actions: tuple[int, int],
) -> EpisodeSlice:
    """Read frames [frames[0], frames[1]) and actions [actions[0], actions[1]) of one episode.

    Args:
        objects: their poses are read behind `qpos`.

    Raises:
        UserError: the file cannot be read any more, with the file named.
    """
    try:
        with h5py.File(path, "r") as file:
            observations = file["observations"]
            state = [observations["qpos"], *(file[f"{POSES}/{name}"] for name in objects)]
            return EpisodeSlice(
                length=len(file[action_dataset]),
                frame_start=frames[0],
                action_start=actions[0],
                images={c: observations[f"images/{c}"][slice(*frames)] for c in cameras},
                qpos=np.hstack([part[slice(*frames)] for part in state]).astype(np.float32),
                action=file[action_dataset][slice(*actions)].astype(np.float32),
            )
    except (OSError, KeyError, RuntimeError) as error:
        raise bad_episode(Path(path), f"it changed since it was indexed ({error})") from error


def read_actions(path: Path, action_dataset: str) -> np.ndarray:
    """All actions (T, D) float32 of one episode.

    Raises:
        UserError: the file cannot be read, or lacks that dataset.
    """
    try:
        with h5py.File(path, "r") as file:
            return file[action_dataset][:].astype(np.float32)
    except (OSError, KeyError, RuntimeError) as error:
        raise bad_episode(path, f"its /{action_dataset} cannot be read ({error})") from error


def bad_episode(path: Path, reason: str) -> UserError:
    """The error for a file that must not be trained on."""
    return UserError(
        f"Bad episode {path}: {reason}. Remove or re-record the file, or set "
        "data.on_bad_episode=skip to train without it."
    )


def _describe(path: Path, file: h5py.File) -> EpisodeInfo:
    actions = tuple(name for name in ACTION_DATASETS.values() if _is_dataset(file, name))
    if "action" not in actions or not _is_dataset(file, "observations/qpos"):
        raise bad_episode(path, "it lacks the dataset /action or /observations/qpos")
    vectors = {name: file[name] for name in (*actions, "observations/qpos")}
    if _is_dataset(file, "observations/qvel"):
        vectors["observations/qvel"] = file["observations/qvel"]
    objects = tuple(file[POSES]) if POSES in file else ()
    vectors |= {f"{POSES}/{name}": file[f"{POSES}/{name}"] for name in objects}
    length = len(file["action"]) if file["action"].ndim else 0
    if length == 0:
        raise bad_episode(path, "its /action has no steps")
    for name, dataset in vectors.items():
        if dataset.ndim != 2 or dataset.shape[0] != length or dataset.dtype.kind != "f":
            raise bad_episode(
                path, f"/{name} is {dataset.dtype}{dataset.shape}, not float ({length}, D)"
            )
        if not np.isfinite(dataset[:]).all():
            raise bad_episode(path, f"/{name} holds NaN or infinite values")

    cameras: dict[str, tuple[int, int]] = {}
    images = file.get("observations/images")
    for camera, frames in images.items() if images is not None else ():
        if not isinstance(frames, h5py.Dataset):
            raise bad_episode(path, f"camera {camera} is not a dataset")
        if frames.ndim != 4 or frames.shape[0] != length or frames.shape[3] != 3:
            raise bad_episode(
                path, f"camera {camera} has shape {frames.shape}, not ({length}, H, W, 3)"
            )
        if frames.dtype != np.uint8:
            raise bad_episode(path, f"camera {camera} is {frames.dtype}, not uint8")
        for step in range(length):  # one frame at a time: reading verifies the checksums
            frames[step]
        cameras[camera] = (int(frames.shape[1]), int(frames.shape[2]))
    return EpisodeInfo(
        path=str(path),
        length=int(length),
        cameras=cameras,
        state_dim=int(file["observations/qpos"].shape[1]),
        action_dim=int(file["action"].shape[1]),
        datasets=actions,
        objects=objects,
        attributes={name: _plain(value) for name, value in file.attrs.items()},
    )


def _is_dataset(file: h5py.File, name: str) -> bool:
    return isinstance(file.get(name), h5py.Dataset)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        value = value.decode()
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
