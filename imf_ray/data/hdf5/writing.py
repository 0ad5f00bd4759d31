"""Writes episode files in our format (HDF5, one per episode).

Our format has the layout of ACT with some additions:

    /observations/images/{camera}  (T, H, W, 3) uint8 RGB, one HDF5 chunk per frame, optional gzip
    /observations/qpos             (T, D_state) float32
    /observations/qvel             (T, D_state) float32, optional
    /observations/poses/{object}   (T, 7) float32, xyz in m and quaternion wxyz, optional
    /action                        (T, D_action) float32, joint targets or the task's own actions
    /action_ee                     (T, D_action) float32, end-effector targets, optional

Observation t is recorded before action t is executed. The root attributes describe the recording:
the task, the action space of `/action`, the control rate, the seed, the outcome and the render
flags. The attribute `digest` is the hash of all other contents.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from imf_ray.data.hdf5.content_hash import HASH_ATTRIBUTE, hash_contents
from imf_ray.data.hdf5.layouts import IMAGES, QPOS, QVEL, pose_dataset
from imf_ray.files import atomic_rename
from imf_ray.storage import storage_errors

DEFLATE_LEVEL = 4
"""gzip level of images. Higher levels take longer and save little (docs/results/data.md)."""


@dataclass(frozen=True)
class RecordingMetadata:
    """Root attributes of a file in our format."""

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
    """A whole episode in memory: `images` {camera: (T, H, W, 3) uint8}, vectors (T, D) float32."""

    images: Mapping[str, np.ndarray]
    qpos: np.ndarray
    qvel: np.ndarray | None
    action: np.ndarray
    action_ee: np.ndarray | None
    poses: Mapping[str, np.ndarray]
    """True poses (T, 7) by object, an input of policies that are trained without cameras."""
    attributes: RecordingMetadata


def write_episode(path: str | Path, episode: Episode, compress: bool = False) -> None:
    """Write an episode file in our format.

    The file appears atomically: it is written under a temporary name, synced and renamed. Every
    dataset has a Fletcher-32 checksum, so that reading a damaged one fails.

    Args:
        compress: compress the images with gzip, which is lossless and readable by every HDF5
            library.

    Raises:
        StorageError: the file cannot be written, for example because the disk is full.
    """
    attributes = dataclasses.asdict(episode.attributes)
    attributes["camera_names"] = json.dumps(attributes["camera_names"])
    vectors = {
        QPOS: episode.qpos,
        QVEL: episode.qvel,
        "action": episode.action,
        "action_ee": episode.action_ee,
        **{pose_dataset(name): poses for name, poses in episode.poses.items()},
    }
    present = {name: values for name, values in vectors.items() if values is not None}
    write_file(path, attributes, present, episode.images, compress)


def write_file(
    path: str | Path,
    attributes: Mapping[str, Any],
    vectors: Mapping[str, np.ndarray],
    images: Mapping[str, Iterable[np.ndarray]],
    compress: bool = False,
) -> None:
    """Write an HDF5 file of one episode, which appears atomically; see `write_episode`.

    Args:
        attributes: root attributes. The hash of the contents is added.
        vectors: (T, D) by name of the dataset; they become float32.
        images: the images (H, W, 3) uint8 of all steps by camera.

    Raises:
        StorageError: see `write_episode`.
    """
    path = Path(path)
    gzip = {"compression": "gzip", "compression_opts": DEFLATE_LEVEL} if compress else {}
    length = len(next(iter(vectors.values())))
    content = io.BytesIO()  # on a full disk, HDF5 fails with unclear errors and may crash later
    with h5py.File(content, "w") as file:
        for name, value in attributes.items():
            file.attrs[name] = value
        for camera, frames in images.items():
            dataset = None
            for step, frame in enumerate(frames):
                if dataset is None:
                    dataset = file.create_dataset(
                        f"{IMAGES}/{camera}",
                        shape=(length, *frame.shape),
                        dtype=frame.dtype,
                        chunks=(1, *frame.shape),
                        fletcher32=True,
                        **gzip,
                    )
                dataset[step] = frame
        for name, values in vectors.items():
            file.create_dataset(
                name, data=values.astype(np.float32), chunks=values.shape, fletcher32=True
            )
        file.attrs[HASH_ATTRIBUTE] = hash_contents(file)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with storage_errors(path, "written"):
        try:
            partial.write_bytes(content.getbuffer())
            atomic_rename(partial, path)
        finally:
            partial.unlink(missing_ok=True)
