"""Reads data sets of Diffusion Policy: zarr arrays with the steps of all episodes in a row.

`data/NAME` has a row per step, and `meta/episode_ends` the step after the last one of each episode.
The address of an episode is `DATASET/episode_NUMBER`.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import numpy as np

from imf_ray.data.array_episodes import (
    ArrayEpisode,
    StepArray,
    describe_arrays,
    hash_arrays,
    read_arrays,
)
from imf_ray.data.episodes import EpisodeFields, EpisodeMetadata, EpisodeRef, EpisodeSlice
from imf_ray.data.features import UsualNames
from imf_ray.data.readers import DIFFUSION_POLICY
from imf_ray.data.source_files import fingerprint, list_files
from imf_ray.errors import UserError
from imf_ray.storage import AnyPath, parse_path

DATA, EPISODE_ENDS = "data", "meta/episode_ends"
_EPISODE_NAME = re.compile(r"episode_([0-9]+)")
USUAL_NAMES = UsualNames(
    states=(("state",), ("robot_eef_pose",), ("agent_pos",)),
    actions=(("action",),),
    camera_name=lambda name: name,
)


@dataclass(frozen=True)
class _Rows:
    """Consecutive rows of an array."""

    array: Any
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *self.array.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return cast("np.dtype[Any]", self.array.dtype)

    def chunk_files(self) -> Iterator[str]:
        """Yield the paths of the files with these rows, relative to the data set."""
        sizes = self.array.shards or self.array.chunks
        first, *others = zip(self.array.shape, sizes, strict=True)
        ranges = [range(self.start // first[1], -(-self.stop // first[1]))]
        ranges += [range(-(-size // chunk)) for size, chunk in others]
        for indices in itertools.product(*ranges):
            yield f"{self.array.path}/{self.array.metadata.encode_chunk_key(indices)}"

    def __getitem__(self, steps: slice, /) -> np.ndarray:
        start, stop, _ = steps.indices(self.stop - self.start)
        return np.asarray(self.array[self.start + start : self.start + stop])


class ZarrReader:
    """Reads data sets of Diffusion Policy; see `imf_ray.data.readers.ContainerReader`."""

    def matches(self, folder: AnyPath) -> bool:
        return True  # no other format has the marker

    def list_episodes(self, folder: AnyPath) -> list[AnyPath]:
        return [folder / f"episode_{number}" for number in range(len(_open(folder).ends))]

    def fingerprint(self, path: AnyPath) -> str:
        rows = [cast(_Rows, array) for array in _episode(path).arrays.values()]
        files = [path.parent / file for part in rows for file in part.chunk_files()]
        digest = hashlib.blake2b(_fingerprint(path.parent).encode(), digest_size=16)
        for file in files:
            try:
                digest.update(fingerprint(file).encode())
            except FileNotFoundError:  # a check refuses it
                digest.update(b"missing")
        return f"{path.name} {digest.hexdigest()}"

    def check_bytes(self, path: AnyPath) -> int:
        arrays = _episode(path).arrays.values()
        return sum(int(np.prod(array.shape)) * array.dtype.itemsize for array in arrays)

    def check(
        self, path: AnyPath, format: str, features: Mapping[str, list[str]]
    ) -> EpisodeMetadata:
        before = self.fingerprint(path)
        return describe_arrays(
            path,
            lambda: nullcontext(_with_missing_files(path)),
            before,
            DIFFUSION_POLICY,
            features,
            USUAL_NAMES,
        )

    def content_hash(self, path: AnyPath) -> str:
        return hash_arrays(_episode(path))

    def read(
        self,
        episode: EpisodeRef,
        fields: EpisodeFields,
        frames: tuple[int, int],
        actions: tuple[int, int],
    ) -> EpisodeSlice:
        arrays = _episode(parse_path(episode.path))
        return read_arrays(arrays, episode, fields, frames, actions, USUAL_NAMES)


@dataclass(frozen=True)
class _Dataset:
    """An open data set."""

    arrays: Mapping[str, Any]
    ends: np.ndarray
    """(number of episodes,) the step after the last one of each episode."""
    problems: Mapping[str, str]


def _fingerprint(folder: AnyPath) -> str:
    """Return a string that changes when the descriptions of the arrays or the episodes change."""
    names = (".zarray", "zarr.json")
    files = [file for name in names for file in list_files(folder, name)]
    ends = [file for file in list_files(folder / EPISODE_ENDS, "") if file not in files]
    return " ".join(fingerprint(file) for file in [*files, *ends] if file.is_file())


def _open(folder: AnyPath) -> _Dataset:
    """Open a data set, once per process until it changes.

    Raises:
        UserError: it is no data set of Diffusion Policy, or its episodes do not fit its arrays.
    """
    return _open_cached(str(folder), _fingerprint(folder))


@lru_cache(maxsize=4)
def _open_cached(folder: str, fingerprint: str) -> _Dataset:
    root = parse_path(folder)
    try:
        import zarr
    except ImportError as error:
        raise UserError(
            f"{root} is a zarr data set. Install what reads it: pip install 'imf_ray[zarr]'."
        ) from error
    try:
        group = zarr.open_group(folder, mode="r", storage_options=None)
        ends = np.asarray(cast(Any, group[EPISODE_ENDS])[:]).astype(np.int64)
        members = dict(cast(Any, group[DATA]).arrays())
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{root} cannot be read as a data set of Diffusion Policy, which has the zarr arrays "
            f"{DATA}/* and {EPISODE_ENDS} ({type(error).__name__}: {error})."
        ) from error
    if ends.ndim != 1 or not len(ends) or (np.diff(ends, prepend=0) < 0).any():
        raise UserError(f"{EPISODE_ENDS} in {root} does not increase from episode to episode.")
    steps = int(ends[-1])
    problems = {
        name: f"{name} has {array.shape[0] if array.shape else 0} rows, but the episodes {steps} "
        "steps"
        for name, array in members.items()
        if not array.shape or array.shape[0] != steps
    }
    arrays = {name: array for name, array in sorted(members.items()) if name not in problems}
    return _Dataset(arrays, ends, problems)


def _episode(path: AnyPath) -> ArrayEpisode:
    """Return the episode of an address.

    Raises:
        UserError: the data set has no such episode.
    """
    dataset, match = _open(path.parent), _EPISODE_NAME.fullmatch(path.name)
    number = -1 if match is None else int(match[1])
    if not 0 <= number < len(dataset.ends):
        raise UserError(f"the data set {path.parent} has no episode {path.name}")
    start = int(dataset.ends[number - 1]) if number else 0
    stop = int(dataset.ends[number])
    arrays: dict[str, StepArray] = {
        name: _Rows(array, start, stop) for name, array in dataset.arrays.items()
    }
    return ArrayEpisode(stop - start, arrays, {}, dataset.problems)


def _with_missing_files(path: AnyPath) -> ArrayEpisode:
    """Return the episode of an address, and note the arrays whose files are not all there.

    zarr would read the fill value instead, also where a copy of the data set is incomplete.
    """
    episode = _episode(path)
    problems = dict(episode.problems)
    for name, array in episode.arrays.items():
        files = cast(_Rows, array).chunk_files()
        missing = next((file for file in files if not (path.parent / file).is_file()), None)
        if missing is not None:
            problems[name] = (
                f"{name} lacks the file {missing}. Copy it again, or write all of its values "
                "(write_empty_chunks=True of zarr)"
            )
    return replace(episode, problems=problems)
