"""Checks an episode file: reads all of it and describes what a run can use, and what not.

A run uses the states, the actions of one action space, the images of some cameras and the poses of
some objects. A problem of another part does not matter to it. The description therefore has the
problems of all parts, and each run compares it with its options (see `requirements`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import h5py
import numpy as np

from imf_ray.data.channel_order import AUTO, StoredImages
from imf_ray.data.episodes import (
    POSE_DIM,
    READ_ERRORS,
    EpisodeMetadata,
    Features,
    bad_episode_error,
)
from imf_ray.data.hdf5.content_hash import (
    HASH_ATTRIBUTE,
    FileContents,
    find_dataset,
    find_object,
    first_line,
    may_recover,
    name_text,
    read_contents,
)
from imf_ray.data.hdf5.frames import check_frames
from imf_ray.data.hdf5.layouts import (
    IMAGES,
    LAYOUTS,
    POSES,
    QPOS,
    QVEL,
    Layout,
    format_name,
    is_own_recording,
    pose_dataset,
)
from imf_ray.data.hdf5.opening import open_hdf5
from imf_ray.data.hdf5.writing import RecordingMetadata
from imf_ray.data.running_stats import RunningStats
from imf_ray.data.source_files import fingerprint
from imf_ray.errors import UserError, abridge
from imf_ray.storage import AnyPath, as_path

MAX_LISTED_PARTS = 8
"""Maximum number of parts of a file that a message lists."""
T = TypeVar("T")


def check_episode(path: str | AnyPath, format: str = AUTO) -> EpisodeMetadata:
    """Read a whole file once, check it, and return its description.

    Args:
        format: a name in `LAYOUTS`, or `auto` to recognize it by the contents.

    Raises:
        UserError: the file cannot be read as HDF5, or does not match its own content hash. The
            message contains the path and the reason.
    """
    path = as_path(path)
    try:
        fingerprint_before = fingerprint(path)
        with open_hdf5(path) as file:
            return _describe(path, fingerprint_before, file, format)
    except UserError as error:
        raise bad_episode_error(path, str(error)) from error
    except READ_ERRORS as error:
        reason = f"it cannot be read as an HDF5 episode ({first_line(error)})"
        raise bad_episode_error(path, reason) from error


def _describe(
    path: AnyPath, fingerprint: str, file: h5py.File, requested_format: str
) -> EpisodeMetadata:
    """Read an open file and return its description."""
    contents = read_contents(file)  # this also verifies the checksums of all datasets
    attributes = _read_attributes(file)
    name = format_name(file, requested_format)
    layout = LAYOUTS[name]
    parts = _Parts(file, contents)
    actions = layout.actions.values()
    required = parts.read_vectors([QPOS, *actions])
    if QPOS not in required:
        parts.note_missing([QPOS])
    if not required.keys() - {QPOS}:
        parts.note_missing(list(actions))
    reference = next(iter(required), None)
    length = 0 if reference is None else len(required[reference])
    poses = {pose_dataset(member): member for member in parts.members(POSES)}
    vectors = {**required, **parts.read_vectors([*poses, QVEL])}
    for vector, values in vectors.items():
        if len(values) != length:
            parts.problems[vector] = (
                f"/{vector} has {len(values)} steps, but /{reference} has {length}"
            )
        elif vector in poses and values.shape[1] != POSE_DIM:
            parts.problems[vector] = f"/{vector} is {values.shape[1]} wide, not {POSE_DIM}"
    stats = {
        vector: RunningStats.from_array(values)
        for vector, values in vectors.items()
        if vector not in parts.problems
    }
    cameras = {f"{IMAGES}/{member}": member for member in parts.members(IMAGES)}
    images = {
        camera: stored
        for dataset, camera in cameras.items()
        if length and (stored := parts.check_images(dataset, camera, layout, length)) is not None
    }
    _require_own_hash(attributes, contents.content_hash, parts.problems.values())
    used = {QPOS, QVEL, *actions, *poses, *cameras, *layout.ignored_datasets}
    return EpisodeMetadata(
        path=str(path),
        length=length,
        images=images,
        format=name,
        features=Features(
            state=(QPOS,),
            actions={space: (part,) for space, part in layout.actions.items()},
            cameras={camera: dataset for dataset, camera in cameras.items()},
            poses={member: dataset for dataset, member in poses.items()},
            image_group=IMAGES,
        ),
        action_spaces=tuple(space for space, part in layout.actions.items() if part in stats),
        objects=tuple(member for dataset, member in poses.items() if dataset in stats),
        stats=stats,
        fingerprint=fingerprint,
        content_hash=contents.content_hash,
        attributes=attributes,
        unused_datasets=parts.unused(used),
        problems=parts.problems,
        damaged=contents.damaged,
    )


class _Parts:
    """The datasets and links of an open file. Those that cannot be used are noted in `problems`."""

    def __init__(self, file: h5py.File, contents: FileContents) -> None:
        self._file, self._names = file, contents.parts
        self._found: list[h5py.Dataset] = []
        self.problems = {name: f"/{name} {reason}" for name, reason in contents.problems.items()}
        """See `EpisodeMetadata.problems`."""

    def read_vectors(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the values (T, D) float32 of each vector dataset that can be read, by name."""
        read = {name: self._attempt(name, partial(self._read_vector, name)) for name in names}
        return {name: values for name, values in read.items() if values is not None}

    def check_images(
        self, name: str, camera: str, layout: Layout, length: int
    ) -> StoredImages | None:
        """Check all images of a camera and describe them."""

        def check() -> StoredImages:
            if self._find(name) is None:
                raise UserError(f"/{name} is a link that leads nowhere")
            return check_frames(layout.open_frames(self._file, camera), camera, length)

        return self._attempt(name, check)

    def members(self, group: str) -> list[str]:
        """Return the names in a group, which may be missing."""
        item = self._attempt(group, partial(self._find_object, group))
        if item is not None and not isinstance(item, h5py.Group):
            self.problems[group] = f"/{group} is a dataset, not a group of datasets"
        return [name_text(name) for name in item] if isinstance(item, h5py.Group) else []

    def note_missing(self, names: Sequence[str]) -> None:
        """Note that one of some datasets is required, unless the problem of one is known."""
        if self.problems.keys().isdisjoint(names):
            others = abridge([f"/{name}" for name in self._names], MAX_LISTED_PARTS)
            required = " or ".join(f"/{name}" for name in names)
            self.problems[names[0]] = f"it lacks the dataset {required} (it has {others or 'none'})"

    def unused(self, used: Collection[str]) -> tuple[str, ...]:
        """Return the names of all parts except `used` and the links to them."""
        return tuple(
            name
            for name in self._names
            if not any(part == name or part.startswith(f"{name}/") for part in used)
            and not self._is_found(name)
        )

    def _is_found(self, name: str) -> bool:
        """Return True if a part is used under another name, by a link."""
        is_link = not isinstance(self._file.get(name, getlink=True), h5py.HardLink)
        return not is_link and any(item == self._file.get(name) for item in self._found)

    def _read_vector(self, name: str) -> np.ndarray | None:
        dataset = self._find(name)
        if dataset is None:
            return None
        is_number = dataset.dtype.kind in "fiu"
        if not is_number or dataset.ndim != 2 or not dataset.shape[1]:
            hint = ". Store single numbers as (T, 1)" if is_number and dataset.ndim == 1 else ""
            raise UserError(
                f"/{name} is {dataset.dtype}{dataset.shape}, not numbers of shape (T, D){hint}"
            )
        if not len(dataset):
            raise UserError(f"/{name} has no steps")
        with np.errstate(over="ignore"):  # a number too large for float32 becomes infinite
            values: np.ndarray = dataset[:].astype(np.float32)
        invalid = np.argwhere(~np.isfinite(values))
        if len(invalid):
            step, dim = invalid[0]
            raise UserError(
                f"/{name} has NaN or infinite values, the first at step {step} in dimension {dim}"
            )
        return values

    def _find(self, name: str) -> h5py.Dataset | None:
        try:
            dataset = find_dataset(self._file, name)
        except UserError as error:
            raise UserError(f"/{name} {error}") from error
        if dataset is not None:
            self._found.append(dataset)
        elif find_object(self._file, name) is not None:
            raise UserError(f"/{name} is a group, not a dataset")
        return dataset

    def _find_object(self, name: str) -> h5py.HLObject | None:
        try:
            return find_object(self._file, name)
        except UserError as error:
            raise UserError(f"/{name} {error}") from error

    def _attempt(self, name: str, read: Callable[[], T]) -> T | None:
        """Return the result of `read`, or None and note the problem of the part `name`."""
        if name in self.problems:
            return None
        try:
            return read()
        except UserError as error:
            self.problems[name] = str(error).rstrip(".")
        except READ_ERRORS as error:
            if may_recover(self._file, error):
                raise
            self.problems[name] = f"/{name} cannot be read ({first_line(error)})"
        return None


def _require_own_hash(
    attributes: Mapping[str, Any], content_hash: str, problems: Iterable[str]
) -> None:
    """Check that the contents of a file that this project recorded match its content hash."""
    if not is_own_recording(attributes):
        return
    stored_hash = attributes.get(HASH_ATTRIBUTE)
    known = {field.name for field in dataclasses.fields(RecordingMetadata)}
    unknown = attributes.keys() - known - {HASH_ATTRIBUTE}
    if stored_hash is None and unknown:  # possibly the hash, if its name is damaged
        raise UserError(f"it has an unknown attribute: {', '.join(sorted(unknown))}")
    if stored_hash not in (None, content_hash):
        mismatch = f"its contents do not match its attribute '{HASH_ATTRIBUTE}'"
        raise UserError("; ".join([mismatch, *problems]))


def _read_attributes(file: h5py.File) -> dict[str, Any]:
    """Return the root attributes as JSON values. Unreadable ones are the text of their error."""
    attributes = {}
    for name in file.attrs:
        try:
            attributes[name_text(name)] = _plain(file.attrs[name])
        except READ_ERRORS as error:
            attributes[name_text(name)] = f"cannot be read ({first_line(error)})"
    return attributes


def _plain(value: Any) -> Any:
    """Return an attribute's value as a JSON value."""
    if isinstance(value, (np.generic, np.ndarray)):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, str):  # invalid UTF-8 is in it as surrogates, which cannot be printed
        return value.encode(errors="backslashreplace").decode()
    return value if isinstance(value, (int, float)) else str(value)
