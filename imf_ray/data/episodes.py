"""One episode, one HDF5 file: ours is written, and those of every known format are read.

Ours is ACT's layout with a few attributes more:

    /observations/images/{camera}  (T, H, W, 3) uint8 RGB, a chunk a frame, deflated on request
    /observations/qpos             (T, D_state) float32
    /observations/qvel             (T, D_state) float32, optional
    /observations/poses/{object}   (T, 7) float32, xyz in m and quaternion wxyz, optional
    /action                        (T, D_action) float32, joint targets or the task's own actions
    /action_ee                     (T, D_action) float32, end-effector targets, optional

Observation t is the one before action t. The root attributes say what shapes cannot: the task, the
action space of `/action`, the control rate, the seed, the outcome and the render flags; `digest` is
that of all else in the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from imf_ray.data.content_hash import DIGEST, hash_contents, reject_external_data
from imf_ray.data.hdf5 import fingerprint, open_hdf5
from imf_ray.data.readers import (
    AUTO,
    FORMATS,
    IMAGES,
    IMF_RAY,
    EpisodeFormat,
    Frames,
    center_crop_resize,
    format_of,
)
from imf_ray.data.running_stats import RunningStats, moments_of
from imf_ray.errors import UserError
from imf_ray.files import atomic_rename, retry_io
from imf_ray.storage import AnyPath, is_remote, is_transient, parse_path

SUFFIX = ".hdf5"
POSES = "observations/poses"
POSE_DIM = 7
QPOS, QVEL = "observations/qpos", "observations/qvel"
DEFLATE_LEVEL = 4
"""Higher ones take longer and save little (docs/results/data.md)."""


@dataclass(frozen=True)
class RecordingMetadata:
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
    attributes: RecordingMetadata


@dataclass(frozen=True)
class EpisodeRef:
    """An indexed file, as whoever reads it again knows it."""

    path: str
    length: int
    format: str
    """A name in `formats.FORMATS`."""
    fingerprint: str
    """See `storage.fingerprint`: where it is another one now, the contents are held to the digest."""
    digest: str
    """Of the contents, see `integrity.digest_of`."""


@dataclass(frozen=True)
class EpisodeMetadata:
    """What a checked file holds: an index row."""

    path: str
    length: int
    cameras: Mapping[str, tuple[int, int]]
    """Image height and width by camera."""
    state_dim: int
    action_dim: int
    format: str
    """A name in `formats.FORMATS`."""
    action_spaces: tuple[str, ...]
    """The spaces that actions are recorded in: `joint`, `ee`."""
    objects: tuple[str, ...]
    """Objects whose poses are recorded."""
    moments: Mapping[str, RunningStats]
    """Of the steps of each vector dataset, by its name."""
    fingerprint: str
    """See `storage.fingerprint`; from before the file was read."""
    digest: str
    """Of the contents, see `integrity.digest_of`."""
    attributes: Mapping[str, Any]
    """Root attributes as plain values; empty for files without them."""
    unread: tuple[str, ...]
    """Datasets that nothing is made of, such as the moves of a mobile base."""

    @property
    def source(self) -> EpisodeRef:
        """What reading the file again takes."""
        return EpisodeRef(self.path, self.length, self.format, self.fingerprint, self.digest)


@dataclass(frozen=True)
class EpisodeFields:
    """What of an episode is read."""

    cameras: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    """Their poses are read behind `qpos`."""
    action_space: str = "joint"
    image_size: int | None = None
    """Side of the pictures; those of another size give their central square, scaled."""


@dataclass(frozen=True)
class EpisodeSlice:
    """Consecutive steps of one episode: what one read brings, and what windows are cut from.

    `images` {camera: (F, H, W, 3) uint8} and `qpos` (F, D; with the poses that were asked for
    behind it) begin at step `frame_start`; `action` (A, D) begins at step `action_start`; `length`
    is the whole episode's.
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


def pose_dataset(name: str) -> str:
    """The dataset of an object's poses."""
    return f"{POSES}/{name}"


def write_episode(path: Path, episode: Episode, compress: bool = False) -> None:
    """Write the file atomically: under a temporary name, synced, then renamed.

    Every dataset carries a Fletcher-32 checksum, so that a flipped byte fails on reading.

    Args:
        compress: deflate the pictures, which loses nothing; every HDF5 library reads it.
    """
    deflate = {"compression": "gzip", "compression_opts": DEFLATE_LEVEL} if compress else {}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with h5py.File(partial, "w") as file:
            for name, value in asdict(episode.attributes).items():
                file.attrs[name] = json.dumps(value) if name == "camera_names" else value
            for camera, frames in episode.images.items():
                file.create_dataset(
                    f"{IMAGES}/{camera}",
                    data=frames,
                    chunks=(1, *frames.shape[1:]),
                    fletcher32=True,
                    **deflate,
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
            file.attrs[DIGEST] = hash_contents(file)
        atomic_rename(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_episode(path: AnyPath, format: str = AUTO) -> EpisodeMetadata:
    """Read the whole file once and describe it.

    Args:
        format: a name in `formats.FORMATS`, or `auto`: the file itself decides.

    Raises:
        UserError: the file cannot be read, or a shape, dtype, length or value in it is wrong; the
            message names the file and the reason.
    """
    try:
        before = fingerprint(path)
        with open_hdf5(path) as file:
            reject_external_data(file)
            return _describe(path, before, file, format)
    except UserError as error:
        raise bad_episode_error(path, str(error)) from error
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        reason = str(error).strip("'\"").partition("\n")[0] or type(error).__name__
        raise bad_episode_error(path, f"it cannot be read as an HDF5 episode ({reason})") from error


def read_slice(
    source: EpisodeRef, selection: EpisodeFields, frames: tuple[int, int], actions: tuple[int, int]
) -> EpisodeSlice:
    """Read frames [frames[0], frames[1]) and actions [actions[0], actions[1]) of one episode.

    Raises:
        UserError: the file cannot be read any more, or holds something else than when it was
            indexed, with the file named.
    """

    def read() -> EpisodeSlice:
        try:
            return _read_slice(source, selection, frames, actions)
        except OSError as error:
            if is_remote(source.path) or is_transient(error):  # a network may fail for a moment
                raise
            raise ValueError(str(error)) from error  # what is wrong is in the file

    try:
        return retry_io(read)
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, UserError) as error:
        raise UserError(
            f"Episode {source.path} cannot be read as it was when it was indexed ({error}). Put "
            "back the file that was, and the same command goes on; or train another run without it."
        ) from error


def _read_slice(
    source: EpisodeRef, selection: EpisodeFields, frames: tuple[int, int], actions: tuple[int, int]
) -> EpisodeSlice:
    now = fingerprint(parse_path(source.path))
    # A copy on another machine has another time, and a file that was edited its old digest.
    if now != source.fingerprint and _digest_at(source.path, now) != source.digest:
        raise UserError("it was changed")
    with open_hdf5(source.path) as file:
        kind = FORMATS[source.format]
        state = [file[QPOS], *(file[pose_dataset(name)] for name in selection.objects)]
        return EpisodeSlice(
            length=source.length,
            frame_start=frames[0],
            action_start=actions[0],
            images={
                camera: _pictures(kind.frames(file, camera), frames, selection.image_size)
                for camera in selection.cameras
            },
            qpos=np.hstack([part[slice(*frames)] for part in state]).astype(np.float32),
            action=file[kind.actions[selection.action_space]][slice(*actions)].astype(np.float32),
        )


@cache
def _digest_at(path: str, fingerprint: str) -> str:
    """The digest of a file's contents, read once a process for each of its stamps."""
    with open_hdf5(path) as file:
        reject_external_data(file)  # or it might take for ever
        return hash_contents(file)


def read_actions(path: AnyPath, format: str, action_space: str) -> np.ndarray:
    """All actions (T, D) float32 of one episode of a format.

    Raises:
        UserError: the file cannot be read, or has no actions in that space.
    """
    try:
        with open_hdf5(path) as file:
            return file[FORMATS[format].actions[action_space]][:].astype(np.float32)
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        reason = f"its {action_space} actions cannot be read ({error})"
        raise bad_episode_error(path, reason) from error


def bad_episode_error(path: str | AnyPath, reason: str) -> UserError:
    """The error for a file that must not be trained on."""
    return UserError(
        f"Bad episode {path}: {reason}. Remove or re-record the file, or set "
        "data.on_bad_episode=skip to train without it."
    )


def _describe(path: AnyPath, fingerprint: str, file: h5py.File, asked: str) -> EpisodeMetadata:
    name = format_of(file, asked)
    kind = FORMATS[name]
    actions = {space: data for space, data in kind.actions.items() if _is_dataset(file, data)}
    main = next(iter(kind.actions.values()))
    for needed in (main, QPOS):
        if not _is_dataset(file, needed):
            raise UserError(f"it lacks the dataset /{needed}")
    strange = set(file.attrs) - {field.name for field in fields(RecordingMetadata)} - {DIGEST}
    if name == IMF_RAY and strange:  # the digest, maybe, under a damaged name
        raise UserError(f"it has an attribute that is not ours: {', '.join(sorted(strange))}")
    objects = tuple(file[POSES]) if POSES in file else ()
    vectors = [*actions.values(), QPOS, *map(pose_dataset, objects)]
    if _is_dataset(file, QVEL):
        vectors.append(QVEL)
    action = file[main]
    length = len(action) if action.ndim else 0
    if length == 0:
        raise UserError(f"its {action.name} has no steps")
    moments = {vector: _check_vector(file[vector], length) for vector in vectors}
    for data in map(pose_dataset, objects):
        if file[data].shape[1] != POSE_DIM:
            raise UserError(f"/{data} is {file[data].shape[1]} wide, not {POSE_DIM}")
    cameras = {
        camera: _check_camera(file, kind, camera, length) for camera in file.get(IMAGES) or ()
    }
    digest = hash_contents(file)  # reads everything, and so verifies the checksums
    if file.attrs.get(DIGEST, digest) != digest:
        raise UserError("it is not what was written: its digest does not match")
    return EpisodeMetadata(
        path=str(path),
        length=int(length),
        cameras=cameras,
        state_dim=int(file[QPOS].shape[1]),
        action_dim=int(action.shape[1]),
        format=name,
        action_spaces=tuple(actions),
        objects=objects,
        moments=moments,
        fingerprint=fingerprint,
        digest=digest,
        attributes={name: _plain(value) for name, value in file.attrs.items()},
        unread=_unread(file, {*vectors, *kind.bookkeeping}),
    )


def _unread(file: h5py.File, used: set[str]) -> tuple[str, ...]:
    """The datasets beside those in use and the pictures."""
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if _is_dataset(file, name) else None)
    return tuple(name for name in names if name not in used and not name.startswith(f"{IMAGES}/"))


def _check_vector(dataset: h5py.Dataset, length: int) -> RunningStats:
    """Moments of a dataset's steps, all of which are vectors of finite numbers."""
    if dataset.ndim != 2 or dataset.shape[0] != length or dataset.dtype.kind != "f":
        raise UserError(
            f"{dataset.name} is {dataset.dtype}{dataset.shape}, not float ({length}, D)"
        )
    with np.errstate(over="ignore"):  # what is too large for training is infinite
        values = dataset[:].astype(np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{dataset.name} holds NaN or infinite values")
    return moments_of(values)


def _check_camera(
    file: h5py.File, kind: EpisodeFormat, camera: str, length: int
) -> tuple[int, int]:
    """Height and width of a camera's pictures, all of which can be read."""
    if not _is_dataset(file, f"{IMAGES}/{camera}"):
        raise UserError(f"camera {camera} is not a dataset")
    frames = kind.frames(file, camera)
    shape = tuple(frames.shape)
    if len(shape) != 4 or shape[0] != length or shape[3] != 3:
        raise UserError(f"camera {camera} has shape {shape}, not ({length}, H, W, 3)")
    if frames.dtype != np.uint8:
        raise UserError(f"camera {camera} is {frames.dtype}, not uint8")
    # Only what is decoded can go wrong after it was read.
    for step in range(0 if isinstance(frames, h5py.Dataset) else length):
        if frames[step : step + 1].shape[1:] != shape[1:]:
            raise UserError(f"camera {camera} changes its size at step {step}")
    return int(shape[1]), int(shape[2])


def _pictures(frames: Frames, steps: tuple[int, int], size: int | None) -> np.ndarray:
    pictures = frames[slice(*steps)]
    return pictures if size is None else center_crop_resize(pictures, size)


def _is_dataset(file: h5py.File, name: str) -> bool:
    return isinstance(file.get(name), h5py.Dataset)


def _plain(value: Any) -> Any:
    """An attribute as JSON has it."""
    if isinstance(value, (np.generic, np.ndarray)):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, (str, int, float)) else str(value)
