"""Episode files (HDF5, one per episode): writes our format and reads all formats.

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
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from imf_ray.aliases import EPISODE_REF_FIELDS, rename_keys
from imf_ray.data.channel_order import StoredImages
from imf_ray.data.content_hash import HASH_ATTRIBUTE, READ_ERRORS, hash_contents
from imf_ray.data.episode_formats import AUTO, FORMATS, IMAGES
from imf_ray.data.frames import Frames
from imf_ray.data.hdf5 import fingerprint, open_hdf5
from imf_ray.data.running_stats import RunningStats
from imf_ray.errors import StorageError, UserError, abridge
from imf_ray.files import atomic_rename, retry_io
from imf_ray.images import center_crop_resize
from imf_ray.storage import AnyPath, is_remote, is_transient, parse_path, storage_errors

SUFFIX = ".hdf5"
POSES = "observations/poses"
"""Group of the object poses, with one dataset per object."""
POSE_DIM = 7
QPOS, QVEL = "observations/qpos", "observations/qvel"
MAX_LISTED_COPIES = 20
"""Maximum number of copied episodes in a message."""
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


@dataclass(frozen=True)
class EpisodeRef:
    """Reference to an indexed file: enough to read the file again and to notice that it changed."""

    path: str
    length: int
    """Number of environment steps."""
    format: str
    """A name in `episode_formats.FORMATS`."""
    fingerprint: str
    """See `hdf5.fingerprint`. If it has changed, `content_hash` is compared instead."""
    content_hash: str
    """See `content_hash.hash_contents`."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EpisodeRef:
        """Make a reference from its JSON form, which may have the names of an earlier version."""
        return cls(**rename_keys(values, EPISODE_REF_FIELDS))


@dataclass(frozen=True)
class EpisodeMetadata:
    """Description of a checked file, one entry of the index.

    It is the same for all runs. Whether a part of the file that cannot be used matters, a run
    decides: see `requirements`.
    """

    path: str
    length: int
    """Number of environment steps."""
    images: Mapping[str, StoredImages]
    """Images by camera."""
    format: str
    """A name in `episode_formats.FORMATS`."""
    action_spaces: tuple[str, ...]
    """Action spaces with recorded actions: `joint`, `ee`."""
    objects: tuple[str, ...]
    """Objects with recorded poses."""
    stats: Mapping[str, RunningStats]
    """Statistics of each vector dataset over its steps, by dataset name."""
    fingerprint: str
    """See `hdf5.fingerprint`. It was computed before the file was read."""
    content_hash: str
    """See `content_hash.hash_contents`."""
    attributes: Mapping[str, Any]
    """Root attributes as JSON values; empty for files without attributes."""
    unused_datasets: tuple[str, ...]
    """Datasets and links that training never reads, such as the actions of a mobile base."""
    problems: Mapping[str, str]
    """Datasets and links that cannot be used, with the reason as a clause. The other fields do not
    mention them, except `unused_datasets`."""
    damaged: bool
    """True if stored values could not be read. The file is then checked again by every run."""

    @property
    def cameras(self) -> Mapping[str, tuple[int, int]]:
        """Image height and width by camera."""
        return {camera: (images.height, images.width) for camera, images in self.images.items()}

    @property
    def seed(self) -> int | None:
        """Seed of the recording; None if the attribute `seed` is missing or is no seed."""
        return whole_number(self.attributes.get("seed"), minimum=0)

    @property
    def ref(self) -> EpisodeRef:
        """Reference for reading the file again."""
        return EpisodeRef(self.path, self.length, self.format, self.fingerprint, self.content_hash)


@dataclass(frozen=True)
class EpisodeFields:
    """The fields of an episode that are read."""

    cameras: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    """Objects whose poses are read."""
    action_space: str = "joint"
    image_size: int | None = None
    """Side of the images in pixels. Images of another size are cropped to their central square and
    scaled. None keeps the recorded size."""
    channel_order: str = AUTO
    """Value of `data.channel_order`."""


@dataclass(frozen=True)
class EpisodeSlice:
    """Consecutive steps of one episode, the result of one read. Windows are extracted from it.

    `images` {camera: (F, H, W, 3) uint8}, `qpos` (F, D) and `object_poses` {name: (F, 7)} start at
    environment step `frame_start`. `action` (A, D) starts at environment step `action_start`.
    `length` is the number of steps of the whole episode. Vectors are float32.
    """

    length: int
    frame_start: int
    action_start: int
    images: Mapping[str, np.ndarray]
    qpos: np.ndarray
    object_poses: Mapping[str, np.ndarray]
    action: np.ndarray


def find_copies(episodes: Iterable[EpisodeMetadata]) -> dict[str, str]:
    """Map the path of each episode to that of an earlier one with the same contents, if any."""
    first: dict[str, str] = {}
    copies = {}
    for episode in episodes:
        original = first.setdefault(episode.content_hash, episode.path)
        if original != episode.path:
            copies[episode.path] = original
    return copies


def describe_copies(copies: Mapping[str, str]) -> str:
    """Return the result of `find_copies` as a list of file names."""
    names = {path: path.rpartition("/")[2] for item in copies.items() for path in item}
    pairs = [f"{names[copy]} (of {names[original]})" for copy, original in copies.items()]
    return abridge(pairs, MAX_LISTED_COPIES)


def unwrap(value: Any) -> Any:
    """Return the single value of a list with one element, otherwise the value itself."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value


def whole_number(value: Any, minimum: int) -> int | None:
    """Return an attribute's value as a whole number, or None if it is not one, or too small.

    Other programs store numbers as text, floats or arrays of one element.
    """
    value = unwrap(value)
    if isinstance(value, bool):
        return None
    if not isinstance(value, int):
        try:
            number = float(value)
        except (TypeError, ValueError):
            return None
        if not number.is_integer():
            return None
        value = int(number)
    return value if value >= minimum else None


def episode_path(folder: str | Path, number: int) -> Path:
    """Return the path of episode `number` in a data set."""
    return Path(folder) / f"episode_{number}{SUFFIX}"


def pose_dataset(name: str) -> str:
    """Return the name of the dataset with an object's poses."""
    return f"{POSES}/{name}"


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
    path = Path(path)
    gzip = {"compression": "gzip", "compression_opts": DEFLATE_LEVEL} if compress else {}
    content = io.BytesIO()  # on a full disk, HDF5 fails with unclear errors and may crash later
    with h5py.File(content, "w") as file:
        for name, value in dataclasses.asdict(episode.attributes).items():
            file.attrs[name] = json.dumps(value) if name == "camera_names" else value
        for camera, frames in episode.images.items():
            file.create_dataset(
                f"{IMAGES}/{camera}",
                data=frames,
                chunks=(1, *frames.shape[1:]),
                fletcher32=True,
                **gzip,
            )
        for name, values in (
            (QPOS, episode.qpos),
            (QVEL, episode.qvel),
            ("action", episode.action),
            ("action_ee", episode.action_ee),
            *((pose_dataset(name), poses) for name, poses in episode.poses.items()),
        ):
            if values is not None:
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


def read_slice(
    episode: EpisodeRef, fields: EpisodeFields, frames: tuple[int, int], actions: tuple[int, int]
) -> EpisodeSlice:
    """Read frames [frames[0], frames[1]) and actions [actions[0], actions[1]) of one episode.

    Raises:
        UserError: the file can no longer be read, or its contents have changed since it was
            indexed. The message contains the path. It is a `StorageError` if the storage fails.
    """

    def read() -> EpisodeSlice:
        try:
            return _read_slice(episode, fields, frames, actions)
        except OSError as error:
            if is_remote(episode.path) or is_transient(error):  # retry: a network may recover
                raise
            raise ValueError(str(error)) from error  # no retry: the file itself is damaged

    try:
        return retry_io(read)
    except (*READ_ERRORS, UserError) as error:
        storage_fails = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        raise (StorageError if storage_fails else UserError)(
            f"Episode {episode.path} cannot be read as it was indexed ({error}). Restore the "
            "original file and repeat the command to resume, or start another run without the file."
        ) from error


def _read_slice(
    episode: EpisodeRef, fields: EpisodeFields, frames: tuple[int, int], actions: tuple[int, int]
) -> EpisodeSlice:
    current = fingerprint(parse_path(episode.path))
    # A copy on another machine may have another modification time, so the contents are compared.
    # The hash in the file's attribute does not help, because editing the file does not update it.
    is_unchanged = (
        current == episode.fingerprint
        or _content_hash(episode.path, current) == episode.content_hash
    )
    if not is_unchanged:
        raise UserError("it was changed")
    with open_hdf5(episode.path) as file:
        format = FORMATS[episode.format]
        action_dataset = format.actions[fields.action_space]
        return EpisodeSlice(
            length=episode.length,
            frame_start=frames[0],
            action_start=actions[0],
            images={
                camera: _read_images(
                    format.open_frames(file, camera, fields.channel_order),
                    frames,
                    fields.image_size,
                )
                for camera in fields.cameras
            },
            qpos=_read_vectors(file[QPOS], frames),
            object_poses={
                name: _read_vectors(file[pose_dataset(name)], frames) for name in fields.objects
            },
            action=_read_vectors(file[action_dataset], actions),
        )


@cache
def _content_hash(path: str, fingerprint: str) -> str:
    """Return the hash of a file's contents, computed once per process and fingerprint."""
    with open_hdf5(path) as file:
        return hash_contents(file)


def read_actions(info: EpisodeMetadata, action_space: str) -> np.ndarray:
    """Return all actions (T, D) float32 of one episode.

    Raises:
        UserError: the file cannot be read, or has no usable actions in `action_space`.
    """
    dataset = FORMATS[info.format].actions.get(action_space, "")
    reason = info.problems.get(dataset)
    if reason is None and action_space not in info.action_spaces:
        spaces = [f"task.action_space={space}" for space in info.action_spaces]
        reason = f"it has no actions of task.action_space={action_space}, but {', '.join(spaces)}"
    if reason is None:
        try:
            with open_hdf5(info.path) as file:
                return file[dataset][:].astype(np.float32)
        except READ_ERRORS as error:
            reason = f"its {action_space} actions cannot be read ({error})"
    raise UserError(f"The actions of {info.path} cannot be used: {reason}.")


def bad_episode_error(path: str | AnyPath, reason: str) -> UserError:
    """Return the error for a file that cannot be used for training."""
    return UserError(
        f"Bad episode {path}: {reason}. Remove or re-record the file, or set "
        "data.on_bad_episode=skip to train without it."
    )


def _read_vectors(dataset: h5py.Dataset, steps: tuple[int, int]) -> np.ndarray:
    return dataset[slice(*steps)].astype(np.float32)


def _read_images(frames: Frames, steps: tuple[int, int], size: int | None) -> np.ndarray:
    images = frames[slice(*steps)]
    return images if size is None else center_crop_resize(images, size)
