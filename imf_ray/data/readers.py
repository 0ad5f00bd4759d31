"""Readers of episodes: the registry of data set formats, and reading a slice of any of them.

A format is registered in `FORMATS`. docs/formats.md explains how to add one.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol, cast

import numpy as np

from imf_ray.data.channel_order import AUTO
from imf_ray.data.episodes import (
    READ_ERRORS,
    EpisodeFields,
    EpisodeMetadata,
    EpisodeRef,
    EpisodeSlice,
)
from imf_ray.errors import StorageError, UserError
from imf_ray.files import retry_io
from imf_ray.storage import AnyPath, is_remote, is_transient, parse_path

_HDF5 = "imf_ray.data.hdf5.reader:Hdf5Reader"
LEROBOT, DIFFUSION_POLICY, ROBOMIMIC = "lerobot", "diffusion_policy", "robomimic"


@dataclass(frozen=True)
class DatasetFormat:
    """A format of data sets. Those of `Hdf5Reader` are told apart by the contents of each file."""

    reader: str
    """Class of the reader, as module:Class. It is imported when it is needed."""
    markers: tuple[str, ...] = ()
    """A data set of this format has at least one of these files. Its reader is then asked."""
    suffixes: tuple[str, ...] = ()
    """Suffixes of data sets that are files. The reader is then asked."""

    def may_match(self, folder: AnyPath) -> bool:
        """Return True if a folder or file may be a data set of this format."""
        is_named = bool(self.suffixes) and folder.name.lower().endswith(self.suffixes)
        return (is_named and folder.is_file()) or any(
            (folder / marker).is_file() for marker in self.markers
        )


FORMATS: dict[str, DatasetFormat] = {
    "imf_ray": DatasetFormat(_HDF5),
    "act_plus_plus": DatasetFormat(_HDF5),
    "roboimi": DatasetFormat(_HDF5),
    "act": DatasetFormat(_HDF5),
    LEROBOT: DatasetFormat(
        "imf_ray.data.lerobot.reader:LeRobotReader", markers=("meta/info.json",)
    ),
    DIFFUSION_POLICY: DatasetFormat(
        "imf_ray.data.zarr_reader:ZarrReader",
        markers=("meta/episode_ends/.zarray", "meta/episode_ends/zarr.json"),
    ),
    ROBOMIMIC: DatasetFormat(
        "imf_ray.data.hdf5.robomimic:RobomimicReader", suffixes=(".hdf5", ".h5")
    ),
}
"""Formats by name, the choices of `data.format`."""
CONTAINERS = tuple(name for name, format in FORMATS.items() if format.reader != _HDF5)
"""The formats whose data sets list their episodes themselves, see `ContainerReader`."""


class EpisodeReader(Protocol):
    """Reads the episodes of one kind of data set. It has no state of its own."""

    def fingerprint(self, path: AnyPath) -> str:
        """Return a string that changes when the episode changes, without reading all of it.

        Raises:
            OSError: the metadata of its files cannot be read.
        """

    def check_bytes(self, path: AnyPath) -> int:
        """Return approximately how many bytes a check reads or decodes, for its time limit.

        Raises:
            OSError: see `fingerprint`.
        """

    def check(
        self, path: AnyPath, format: str, features: Mapping[str, list[str]]
    ) -> EpisodeMetadata:
        """Read a whole episode once, check it, and return its description.

        Args:
            format: a name in `FORMATS`, or `auto`.
            features: value of `data.features`.

        Raises:
            UserError: the episode cannot be read. The message contains its address and the reason.
        """

    def content_hash(self, path: AnyPath) -> str:
        """Return a hash of the episode's contents, which copies of it have too."""

    def read(
        self,
        episode: EpisodeRef,
        fields: EpisodeFields,
        frames: tuple[int, int],
        actions: tuple[int, int],
    ) -> EpisodeSlice:
        """Read frames [frames[0], frames[1]) and actions [actions[0], actions[1]) of an episode.

        Raises:
            UserError: the episode cannot be read, with the reason as a clause. Other exceptions
                are those of `READ_ERRORS`.
        """


class ContainerReader(EpisodeReader, Protocol):
    """Reads data sets that are recognized as a whole and list their episodes themselves."""

    def matches(self, folder: AnyPath) -> bool:
        """Return True if a folder or file is a data set of this format, according to its contents.

        It has one of the format's markers or suffixes.
        """

    def list_episodes(self, folder: AnyPath) -> list[AnyPath]:
        """Return the addresses of the episodes, which are names in `folder`.

        Raises:
            UserError: the data set does not say which episodes it has.
        """


def reader_of(format: str) -> EpisodeReader:
    """Return the reader of a format. `auto` stands for HDF5 files in any layout."""
    return _make_reader(_HDF5 if format == AUTO else FORMATS[format].reader)


def container_of(format: str) -> ContainerReader:
    """Return the reader of one of `CONTAINERS`."""
    return cast(ContainerReader, _make_reader(FORMATS[format].reader))


@cache
def _make_reader(name: str) -> EpisodeReader:
    reader: EpisodeReader = pkgutil.resolve_name(name)()
    return reader


def check_episode(
    path: AnyPath, format: str = AUTO, features: Mapping[str, list[str]] | None = None
) -> EpisodeMetadata:
    """Check one episode; see `EpisodeReader.check`."""
    return reader_of(format).check(path, format, features or {})


def read_slice(
    episode: EpisodeRef, fields: EpisodeFields, frames: tuple[int, int], actions: tuple[int, int]
) -> EpisodeSlice:
    """Read frames [frames[0], frames[1]) and actions [actions[0], actions[1]) of one episode.

    Raises:
        UserError: the episode can no longer be read, or its contents have changed since it was
            indexed. The message contains its address. It is a `StorageError` if the storage fails.
    """

    def read() -> EpisodeSlice:
        try:
            _require_unchanged(episode)
            return reader_of(episode.format).read(episode, fields, frames, actions)
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


def _require_unchanged(episode: EpisodeRef) -> None:
    current = reader_of(episode.format).fingerprint(parse_path(episode.path))
    # A copy on another machine may have another modification time, so the contents are compared.
    # A hash that is stored in the file does not help, because editing the file does not update it.
    if current == episode.fingerprint:
        return
    if _content_hash(episode.format, episode.path, current) != episode.content_hash:
        raise UserError("it was changed")


@cache
def _content_hash(format: str, path: str, fingerprint: str) -> str:
    """Return the hash of an episode's contents, computed once per process and fingerprint."""
    return reader_of(format).content_hash(parse_path(path))


def read_actions(info: EpisodeMetadata, action_space: str) -> np.ndarray:
    """Return all actions (T, D) float32 of one episode.

    Raises:
        UserError: the file cannot be read, or has no usable actions in `action_space`.
    """
    reason = info.problem(info.features.actions.get(action_space, ()))
    if reason is None and action_space not in info.action_spaces:
        spaces = [f"task.action_space={space}" for space in info.action_spaces]
        reason = f"it has no actions of task.action_space={action_space}, but {', '.join(spaces)}"
    if reason is None:
        fields = EpisodeFields(action_space=action_space)
        try:
            reader = reader_of(info.format)
            return reader.read(info.ref, fields, (0, 1), (0, info.length)).action
        except READ_ERRORS as error:
            reason = f"its {action_space} actions cannot be read ({error})"
    raise UserError(f"The actions of {info.path} cannot be used: {reason}.")
