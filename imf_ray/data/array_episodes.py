"""Checks and reads episodes that are arrays by name, as in robomimic's HDF5 and in zarr.

An array has one row per step. Rows of numbers are vectors; rows of shape (H, W, 3) are images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from imf_ray.data.channel_order import RAW, RGB, StoredImages
from imf_ray.data.episodes import (
    READ_ERRORS,
    EpisodeFields,
    EpisodeMetadata,
    EpisodeRef,
    EpisodeSlice,
    Features,
    bad_episode_error,
)
from imf_ray.data.features import (
    UsableFeatures,
    UsualNames,
    find_features,
    split_part,
    take_part,
    vector_stats,
)
from imf_ray.data.running_stats import RunningStats
from imf_ray.errors import UserError
from imf_ray.images import center_crop_resize
from imf_ray.storage import AnyPath

CHECK_STEPS = 64
"""Number of images that a check reads at once."""
MIN_IMAGE_SIDE = 8
"""Arrays (T, H, W, 3) with smaller sides are vectors."""


class StepArray(Protocol):
    """The rows of an array that belong to one episode."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, ...)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""

    def __getitem__(self, steps: slice, /) -> np.ndarray:
        """Read the rows of consecutive steps."""


@dataclass(frozen=True)
class ArrayEpisode:
    """One episode."""

    length: int
    arrays: Mapping[str, StepArray]
    attributes: Mapping[str, Any]
    """What is recorded about it, as JSON values."""
    problems: Mapping[str, str]
    """Arrays that cannot be used, with the reason as a clause."""

    def usable(self, option: Mapping[str, list[str]], usual: UsualNames) -> UsableFeatures:
        """Return its state, action and cameras; see `find_features`."""
        cameras = [name for name, array in self.arrays.items() if _is_images(array)]
        vectors = [
            name
            for name, array in self.arrays.items()
            if name not in cameras and array.dtype.kind in "fiub" and 0 not in array.shape[1:]
        ]
        return find_features(vectors, cameras, option, usual)


def describe_arrays(
    path: AnyPath,
    open_episode: Callable[[], AbstractContextManager[ArrayEpisode]],
    fingerprint: str,
    format: str,
    option: Mapping[str, list[str]],
    usual: UsualNames,
) -> EpisodeMetadata:
    """Read all arrays of an episode and describe it.

    Args:
        option: value of `data.features`.

    Raises:
        UserError: it cannot be read. The message contains its address.
    """
    try:
        with open_episode() as episode:
            return _describe(path, episode, fingerprint, format, option, usual)
    except UserError as error:
        raise bad_episode_error(path, str(error).rstrip(".")) from error
    except READ_ERRORS as error:
        reason = f"it cannot be read ({type(error).__name__}: {error})"
        raise bad_episode_error(path, reason) from error


def hash_arrays(episode: ArrayEpisode) -> str:
    """Return the hash of the names, types and values of all arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(episode.arrays):
        array = episode.arrays[name]
        digest.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        for values in _read_in_parts(array):
            digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def read_arrays(
    episode: ArrayEpisode,
    ref: EpisodeRef,
    fields: EpisodeFields,
    frames: tuple[int, int],
    actions: tuple[int, int],
    usual: UsualNames,
) -> EpisodeSlice:
    """Read a slice of an episode; see `EpisodeReader.read`."""
    usable = episode.usable(fields.features, usual)
    images = {}
    for camera in fields.cameras:
        shown = _to_rgb(
            usable.cameras[camera], episode.arrays[usable.cameras[camera]][slice(*frames)]
        )
        size = fields.image_size
        images[camera] = shown if size is None else center_crop_resize(shown, size)
    return EpisodeSlice(
        length=ref.length,
        frame_start=frames[0],
        action_start=actions[0],
        images=images,
        qpos=_read_vectors(episode, usable.state, slice(*frames)),
        object_poses={},
        action=_read_vectors(episode, usable.actions["joint"], slice(*actions)),
    )


def _describe(
    path: AnyPath,
    episode: ArrayEpisode,
    fingerprint: str,
    format: str,
    option: Mapping[str, list[str]],
    usual: UsualNames,
) -> EpisodeMetadata:
    usable = episode.usable(option, usual)
    problems = {**episode.problems, **usable.missing}
    stats: dict[str, RunningStats] = {}
    images: dict[str, StoredImages] = {}
    if not episode.length:
        raise UserError("it has no steps")
    for name in usable.vectors:
        if (reason := problems.get(split_part(name)[0])) is not None:
            problems[name] = reason
        else:
            try:
                values = _read_vectors(episode, (name,), slice(0, episode.length))
                stats[name] = vector_stats(name, values)
            except (*READ_ERRORS, UserError) as error:
                problems[name] = str(error)
    for camera, name in usable.cameras.items():
        if name not in problems:
            try:
                images[camera] = _check_images(name, episode.arrays[name])
            except (*READ_ERRORS, UserError) as error:
                problems[name] = str(error)
    used = {split_part(name)[0] for name in usable.vectors} | {*usable.cameras.values()}
    return EpisodeMetadata(
        path=str(path),
        length=episode.length,
        images=images,
        format=format,
        features=Features(usable.state, usable.actions, usable.cameras),
        action_spaces=("joint",) if usable.actions["joint"][0] in stats else (),
        objects=(),
        stats=stats,
        fingerprint=fingerprint,
        content_hash=hash_arrays(episode),
        attributes=episode.attributes,
        unused_datasets=tuple(name for name in episode.arrays if name not in used),
        problems=problems,
        damaged=False,
    )


def _is_images(array: StepArray) -> bool:
    """Return True for arrays (T, H, W, C) with one or three channels."""
    shape = array.shape
    return len(shape) == 4 and shape[3] in (1, 3) and min(shape[1:3]) >= MIN_IMAGE_SIDE


def _check_images(name: str, array: StepArray) -> StoredImages:
    for images in _read_in_parts(array):
        _to_rgb(name, images)
    _, height, width, channels = array.shape
    return StoredImages(height, width, RAW, channels == 3, RGB)


def _to_rgb(name: str, images: np.ndarray) -> np.ndarray:
    """Return images (n, H, W, 3) uint8.

    Raises:
        UserError: they are not whole numbers from 0 to 255.
    """
    if images.dtype != np.uint8:
        pixels = images.astype(np.uint8)
        if images.dtype.kind not in "fiu" or (pixels != images).any():
            raise UserError(
                f"{name} has images of type {images.dtype} that are not whole numbers from 0 to "
                "255. Convert them to uint8"
            )
        images = pixels
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def _read_vectors(episode: ArrayEpisode, names: Sequence[str], steps: slice) -> np.ndarray:
    """Return concatenated vectors (n, D) float32. Rows of other shapes are flattened."""
    parts = []
    for name in names:
        rows = episode.arrays[split_part(name)[0]][steps]
        parts.append(take_part(name, rows.reshape(len(rows), -1)))
    with np.errstate(over="ignore"):
        return np.concatenate(parts, axis=1).astype(np.float32)


def _read_in_parts(array: StepArray) -> Iterator[np.ndarray]:
    for start in range(0, array.shape[0], CHECK_STEPS):
        yield array[start : start + CHECK_STEPS]
