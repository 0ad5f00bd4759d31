"""Reads data sets of robomimic: one HDF5 file with many episodes.

`data/demo_N/obs/NAME` has the observations and `data/demo_N/actions` the actions of episode N. The
masks `mask/train` and `mask/valid` list episodes for training and for validation. The address of an
episode is `FILE/demo_N`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np

from imf_ray.data.array_episodes import (
    ArrayEpisode,
    StepArray,
    describe_arrays,
    hash_arrays,
    read_arrays,
)
from imf_ray.data.episodes import (
    READ_ERRORS,
    SPLIT,
    VALIDATION_SPLIT,
    EpisodeFields,
    EpisodeMetadata,
    EpisodeRef,
    EpisodeSlice,
    whole_number,
)
from imf_ray.data.features import UsualNames
from imf_ray.data.hdf5.content_hash import find_dataset, find_object
from imf_ray.data.hdf5.opening import open_hdf5
from imf_ray.data.readers import ROBOMIMIC
from imf_ray.data.source_files import file_size, fingerprint
from imf_ray.errors import UserError
from imf_ray.files import INVALID_JSON
from imf_ray.storage import AnyPath, parse_path

DATA, ACTIONS, OBSERVATIONS = "data", "actions", "obs"
VALIDATION_MASK = "mask/valid"
"""List of the episodes that are held out of training."""
SUFFIXES = (".hdf5", ".h5")
_EPISODE_NAME = re.compile(r"demo_([0-9]+)")
USUAL_NAMES = UsualNames(
    states=(
        ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"),
        ("robot0_joint_pos", "robot0_gripper_qpos"),
    ),
    actions=((ACTIONS,),),
    camera_name=lambda name: name.removesuffix("_image"),
)


class RobomimicReader:
    """Reads data sets of robomimic; see `imf_ray.data.readers.ContainerReader`."""

    def matches(self, folder: AnyPath) -> bool:
        if not folder.name.lower().endswith(SUFFIXES) or not folder.is_file():
            return False
        try:
            with open_hdf5(folder) as file:
                return bool(_episode_names(file))
        except READ_ERRORS:
            return False

    def list_episodes(self, folder: AnyPath) -> list[AnyPath]:
        try:
            with open_hdf5(folder) as file:
                return [folder / name for name in _episode_names(file)]
        except READ_ERRORS as error:
            raise UserError(f"{folder} cannot be read as a file of robomimic ({error}).") from error

    def fingerprint(self, path: AnyPath) -> str:
        return f"{path.name} {fingerprint(path.parent)}"

    def check_bytes(self, path: AnyPath) -> int:
        return file_size(path.parent)

    def check(
        self, path: AnyPath, format: str, features: Mapping[str, list[str]]
    ) -> EpisodeMetadata:
        before = self.fingerprint(path)
        return describe_arrays(
            path, lambda: _open_episode(path), before, ROBOMIMIC, features, USUAL_NAMES
        )

    def content_hash(self, path: AnyPath) -> str:
        with _open_episode(path) as episode:
            return hash_arrays(episode)

    def read(
        self,
        episode: EpisodeRef,
        fields: EpisodeFields,
        frames: tuple[int, int],
        actions: tuple[int, int],
    ) -> EpisodeSlice:
        with _open_episode(parse_path(episode.path)) as arrays:
            return read_arrays(arrays, episode, fields, frames, actions, USUAL_NAMES)


def _episode_names(file: h5py.File) -> list[str]:
    """Return the names of the episodes, sorted by number; none if the file has another layout."""
    group = find_object(file, DATA)
    if not isinstance(group, h5py.Group):
        return []
    matches = [_EPISODE_NAME.fullmatch(name) for name in group if isinstance(name, str)]
    return [match[0] for match in sorted(filter(None, matches), key=lambda match: int(match[1]))]


@contextlib.contextmanager
def _open_episode(path: AnyPath) -> Iterator[ArrayEpisode]:
    """Open the episode of an address.

    Raises:
        UserError: the file has no such episode, or the episode has no actions.
    """
    with open_hdf5(path.parent) as file:
        prefix = f"{DATA}/{path.name}"
        group = find_object(file, prefix)
        if not isinstance(group, h5py.Group):
            raise UserError(f"{path.parent} has no episode {path.name}")
        actions = find_dataset(file, f"{prefix}/{ACTIONS}")
        if actions is None or not actions.shape:
            raise UserError(f"/{prefix} has no actions (it has {', '.join(group) or 'nothing'})")
        arrays: dict[str, StepArray] = {}
        problems: dict[str, str] = {}
        for name in _dataset_names(group):
            label = name.removeprefix(f"{OBSERVATIONS}/")
            try:
                dataset = find_dataset(file, f"{prefix}/{name}")
            except UserError as error:
                problems[label] = f"{label} {error}"
                continue
            shape = () if dataset is None else dataset.shape
            if dataset is None or not shape or shape[0] != actions.shape[0]:
                problems[label] = (
                    f"{label} has the shape {shape}, but the episode has {actions.shape[0]} actions"
                )
            else:
                arrays[label] = dataset
        yield ArrayEpisode(actions.shape[0], arrays, _attributes(file, path.name), problems)


def _dataset_names(group: h5py.Group) -> list[str]:
    """Return the names of the datasets of an episode. Observations after a step are left out."""
    observations = group.get(OBSERVATIONS)
    inner = observations if isinstance(observations, h5py.Group) else ()
    names = [name for name in group if group.get(name, getclass=True) is h5py.Dataset]
    return [*names, *(f"{OBSERVATIONS}/{name}" for name in inner)]


def _attributes(file: h5py.File, name: str) -> dict[str, Any]:
    """Return what the file records about an episode."""
    attributes: dict[str, Any] = {}
    try:
        arguments = json.loads(file[DATA].attrs.get("env_args", "{}"))
        attributes["task"] = str(arguments.get("env_name"))
        rate = whole_number((arguments.get("env_kwargs") or {}).get("control_freq"), minimum=1)
        if rate is not None:
            attributes["control_hz"] = rate
    except (*INVALID_JSON, AttributeError, OSError) as error:  # a policy does not need them
        attributes["env_args"] = f"cannot be read ({error})"
    mask = find_dataset(file, VALIDATION_MASK)
    if mask is not None:
        held_out = {_text(value) for value in np.ravel(mask[:])}
        attributes[SPLIT] = VALIDATION_SPLIT if name in held_out else "train"
    return attributes


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
