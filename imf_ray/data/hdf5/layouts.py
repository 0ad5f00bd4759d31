"""Registry of the layouts of HDF5 episodes: how a file is recognized and where its data is stored.

All formats follow the layout of ACT: `/action` and `/observations/{qpos,qvel,images/CAMERA}`. They
differ in the action space of `/action` and in the encoding of the images. docs/formats.md explains
how to add a format.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import h5py
import numpy as np

from imf_ray.data.channel_order import AUTO, ORDER_ATTRIBUTE, OTHER_ORDER, RGB
from imf_ray.data.episodes import READ_ERRORS
from imf_ray.data.hdf5.content_hash import HASH_ATTRIBUTE, find_dataset
from imf_ray.data.hdf5.frames import Frames, open_frames
from imf_ray.errors import UserError

IMF_RAY = "imf_ray"
IMAGES = "observations/images"
"""Group of the images, with one dataset per camera."""
POSES = "observations/poses"
"""Group of the object poses, with one dataset per object."""
QPOS, QVEL = "observations/qpos", "observations/qvel"
_UNIT_TOLERANCE = 1e-3  # of the length of a unit quaternion
EE_ACTION_DIM = 16
"""Width of RoboIMI's end-effector targets."""
_EE_QUATERNION_SLICES = (slice(3, 7), slice(11, 15))
ACTION_SPACE = "action_space"
"""Root attribute with the action space of `/action`."""
OWN_ATTRIBUTES = frozenset({"max_reward", "multisampling", "shadows"})
"""Root attributes that other programs hardly write; see `is_own_recording`."""


class Layout(Protocol):
    """One kind of episode file."""

    actions: Mapping[str, str]
    """Dataset by action space, `joint` or `ee`. A file has at least one of them."""
    ignored_datasets: tuple[str, ...]
    """Datasets of the format that reading does not need, such as lengths of compressed images."""

    def matches(self, file: h5py.File) -> bool:
        """Return True if `file` has this format, according to its contents."""

    def open_frames(self, file: h5py.File, camera: str, channel_order: str = AUTO) -> Frames:
        """Return a lazy view of a camera's images.

        Args:
            channel_order: value of `data.channel_order`.

        Raises:
            UserError: the camera's dataset has no images that can be read.
        """


class ActFormat:
    """Format of ACT: float32 or float64 vectors, with or without `qvel`.

    Every file that no other format matches is read like this. Its actions are taken for joint
    targets. How the images of a camera are stored is recognized by their contents.
    """

    actions: Mapping[str, str] = {"joint": "action"}
    ignored_datasets: tuple[str, ...] = ()

    def matches(self, file: h5py.File) -> bool:
        return True

    def open_frames(self, file: h5py.File, camera: str, channel_order: str = AUTO) -> Frames:
        dataset = file[f"{IMAGES}/{camera}"]
        if not isinstance(dataset, h5py.Dataset):
            raise UserError(f"camera {camera} is a group of {len(dataset)} items, not a dataset")
        return open_frames(dataset, channel_order, self.recorded_order(file, dataset))

    def recorded_order(self, file: h5py.File, dataset: h5py.Dataset) -> str | None:
        """Return the channel order that a file records for the images of a camera, or None."""
        return recorded_order(file, dataset)


class ImfRayFormat(ActFormat):
    """Format of this project: ACT with root attributes, and optionally both action spaces."""

    actions: Mapping[str, str] = {"joint": "action", "ee": "action_ee"}

    def matches(self, file: h5py.File) -> bool:
        return ACTION_SPACE in file.attrs

    def recorded_order(self, file: h5py.File, dataset: h5py.Dataset) -> str | None:
        # Another program may use the attribute of the format, but images in any order.
        names = {HASH_ATTRIBUTE, ACTION_SPACE, *OWN_ATTRIBUTES}
        is_own = is_own_recording(name for name in names if has_attribute(file, name))
        return RGB if is_own else super().recorded_order(file, dataset)


class ActPlusPlusFormat(ActFormat):
    """Format of act-plus-plus: each image is a JPEG, zero-padded to the length of the longest.

    `compress_len` has the lengths, but not which row belongs to which camera. The end of an image
    is found in the image itself.
    """

    ignored_datasets: tuple[str, ...] = ("compress_len",)

    def matches(self, file: h5py.File) -> bool:
        return _is_true(file, "compress") or "compress_len" in file


class RoboImiFormat(ActFormat):
    """Format of RoboIMI: `/action` has end-effector targets, per arm xyz, quaternion and gripper.

    No attribute says so. A file is recognized by actions of width 16 that contain two unit
    quaternions.
    """

    actions: Mapping[str, str] = {"ee": "action"}

    def matches(self, file: h5py.File) -> bool:
        try:
            action = find_dataset(file, "action")
        except UserError:  # its values are not in the file, or only declared
            return False
        if action is None or action.shape[1:] != (EE_ACTION_DIM,) or not len(action):
            return False
        if action.dtype.kind != "f":
            return False
        values = action[:].astype(np.float64)
        norms = np.stack(
            [np.linalg.norm(values[:, dims], axis=1) for dims in _EE_QUATERNION_SLICES]
        )
        return bool((np.abs(norms - 1) < _UNIT_TOLERANCE).all())


LAYOUTS: dict[str, Layout] = {
    IMF_RAY: ImfRayFormat(),
    "act_plus_plus": ActPlusPlusFormat(),
    "roboimi": RoboImiFormat(),
    "act": ActFormat(),
}
"""Layouts by name, choices of `data.format`.

`auto` uses the first format that matches. Specific formats therefore come before general ones.
"""


def is_own_recording(attributes: Iterable[str]) -> bool:
    """Return True if this project recorded a file, according to the names of its attributes.

    One name alone may be in a file of another program. One of several may be damaged in our own.
    """
    names = set(attributes)
    if HASH_ATTRIBUTE in names:
        return not OWN_ATTRIBUTES.isdisjoint(names)
    return names >= {ACTION_SPACE, *OWN_ATTRIBUTES}


def _is_true(file: h5py.File, attribute: str) -> bool:
    """Return True if an attribute, which may be an array, has a true value that can be read."""
    try:
        return bool(np.any(np.asarray(file.attrs.get(attribute, False), dtype=object)))
    except READ_ERRORS:
        return False


def format_name(file: h5py.File, requested: str) -> str:
    """Return the name of a file's format: `requested`, or for `auto` the first that matches."""
    if requested != AUTO:
        return requested
    return next(name for name, format in LAYOUTS.items() if format.matches(file))


def pose_dataset(name: str) -> str:
    """Return the name of the dataset with an object's poses."""
    return f"{POSES}/{name}"


def has_attribute(item: h5py.HLObject, name: str) -> bool:
    """Return True if an HDF5 object has an attribute. Much faster than `name in item.attrs`."""
    return bool(h5py.h5a.exists(item.id, name.encode()))


def recorded_order(file: h5py.File, dataset: h5py.Dataset) -> str | None:
    """Return the order in the attribute `ORDER_ATTRIBUTE` of a dataset or of its file, or None.

    See `StoredImages.channel_order`.
    """
    for owner in (dataset, file):
        if not has_attribute(owner, ORDER_ATTRIBUTE):
            continue
        value = owner.attrs[ORDER_ATTRIBUTE]
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.item()
        text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        order = text.strip().lower()
        return order if order in OTHER_ORDER else text
    return None
