"""Episodes, whatever kind of data set holds them: references, descriptions, and the parts read.

The address of an episode is the path of its file or, if a file or folder holds several, that path
and the name of the episode, such as `/data/pusht.zarr/episode_3`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from imf_ray.aliases import EPISODE_REF_FIELDS, rename_keys
from imf_ray.data.channel_order import AUTO, StoredImages
from imf_ray.data.running_stats import RunningStats, concatenate
from imf_ray.errors import UserError, abridge
from imf_ray.storage import AnyPath

SUFFIX = ".hdf5"
POSE_DIM = 7
MAX_LISTED_COPIES = 20
"""Maximum number of copied episodes in a message."""
SPLIT, VALIDATION_SPLIT = "split", "validation"
"""Attribute of an episode that its data set assigns to training or validation, and its value."""
READ_ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError)
"""Exceptions that libraries raise for a damaged file."""


@dataclass(frozen=True)
class EpisodeRef:
    """Reference to an indexed file: enough to read the file again and to notice that it changed."""

    path: str
    length: int
    """Number of environment steps."""
    format: str
    """A name in `readers.FORMATS`."""
    fingerprint: str
    """See `EpisodeReader.fingerprint`. If it has changed, `content_hash` is compared instead."""
    content_hash: str
    """See `EpisodeReader.content_hash`."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EpisodeRef:
        """Make a reference from its JSON form, which may have the names of an earlier version."""
        return cls(**rename_keys(values, EPISODE_REF_FIELDS))


@dataclass(frozen=True)
class Features:
    """The parts of an episode that hold what a policy needs, by their names in the data set.

    A part that is named here may be missing or unusable: see `EpisodeMetadata.problems`.
    """

    state: tuple[str, ...]
    """Vectors whose concatenation is the state."""
    actions: Mapping[str, tuple[str, ...]]
    """Vectors whose concatenation is the action, by action space: `joint`, `ee`."""
    cameras: Mapping[str, str] = field(default_factory=dict)
    """Images by camera."""
    poses: Mapping[str, str] = field(default_factory=dict)
    """Poses by object."""
    image_group: str | None = None
    """The part that holds the images of all cameras, if there is one."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Features:
        """Make the features from their JSON form."""
        actions = {space: tuple(names) for space, names in values["actions"].items()}
        return cls(**{**values, "state": tuple(values["state"]), "actions": actions})

    def camera_problems(self, cameras: Iterable[str], problems: Mapping[str, str]) -> list[str]:
        """Return the problems of cameras, and that of their group."""
        names = [self.cameras.get(camera, "") for camera in cameras]
        return [problems[name] for name in [*names, self.image_group or ""] if name in problems]


@dataclass(frozen=True)
class EpisodeMetadata:
    """Description of a checked episode, one entry of the index.

    It is the same for all runs. Whether a part of the file that cannot be used matters, a run
    decides: see `requirements`.
    """

    path: str
    length: int
    """Number of environment steps."""
    images: Mapping[str, StoredImages]
    """Images by camera."""
    format: str
    """A name in `readers.FORMATS`."""
    features: Features
    action_spaces: tuple[str, ...]
    """Action spaces with recorded actions: `joint`, `ee`."""
    objects: tuple[str, ...]
    """Objects with recorded poses."""
    stats: Mapping[str, RunningStats]
    """Statistics of each vector over its steps, by its name."""
    fingerprint: str
    """See `EpisodeReader.fingerprint`. It was computed before the episode was read."""
    content_hash: str
    """See `EpisodeReader.content_hash`."""
    attributes: Mapping[str, Any]
    """What is recorded about the episode, as JSON values: the root attributes of an HDF5 file."""
    unused_datasets: tuple[str, ...]
    """Parts that training never reads, such as the actions of a mobile base."""
    problems: Mapping[str, str]
    """Parts that cannot be used, with the reason as a clause. The other fields do not mention them,
    except `features` and `unused_datasets`."""
    damaged: bool
    """True if stored values could not be read. The file is then checked again by every run."""

    @property
    def cameras(self) -> Mapping[str, tuple[int, int]]:
        """Image height and width by camera."""
        return {camera: (images.height, images.width) for camera, images in self.images.items()}

    def problem(self, names: Iterable[str]) -> str | None:
        """Return the problem of the first of these parts that has one, or None."""
        return next((self.problems[name] for name in names if name in self.problems), None)

    def vector_stats(self, names: Iterable[str]) -> RunningStats | None:
        """Return the statistics of concatenated vectors, or None if one of them is unusable."""
        parts = [self.stats.get(name) for name in names]
        usable = [part for part in parts if part is not None]
        return concatenate(usable) if usable and len(usable) == len(parts) else None

    @property
    def required_problem(self) -> str | None:
        """The problem of a part that runs need, or None.

        These are the states, the actions and, in an episode with cameras, at least one of them.
        """
        features = self.features
        actions = [name for names in features.actions.values() for name in names]
        problem = self.problem([*features.state, *actions])
        if problem is not None or self.images:
            return problem
        return next(iter(features.camera_problems(features.cameras, self.problems)), None)

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
    features: Mapping[str, list[str]] = field(default_factory=dict)
    """Value of `data.features`."""


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


def bad_episode_error(path: str | AnyPath, reason: str) -> UserError:
    """Return the error for a file that cannot be used for training."""
    return UserError(
        f"Bad episode {path}: {reason}. Remove or re-record the file, or set "
        "data.on_bad_episode=skip to train without it."
    )
