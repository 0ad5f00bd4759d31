"""Registry of HDF5 episode formats: how a file is recognized and where its data is stored.

All formats follow the layout of ACT: `/action` and `/observations/{qpos,qvel,images/CAMERA}`. They
differ in the action space of `/action` and in the encoding of the images. docs/formats.md explains
how to add a format.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cached_property
from typing import Protocol

import h5py
import numpy as np
from PIL import Image

from imf_ray.errors import UserError

AUTO, IMF_RAY = "auto", "imf_ray"
JPEG_END = b"\xff\xd9"
"""Last two bytes of a complete JPEG."""
IMAGES = "observations/images"
"""Group of the images, with one dataset per camera."""
_UNIT_TOLERANCE = 1e-3  # of the length of a unit quaternion
_EE_QUATERNION_SLICES = (slice(3, 7), slice(11, 15))


class Frames(Protocol):
    """Images of one camera, read on demand."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, H, W, 3)."""

    @property
    def dtype(self) -> np.dtype:
        """uint8 in a valid file."""

    def __getitem__(self, steps: slice, /) -> np.ndarray:
        """Read the images (n, H, W, 3) of environment steps `steps`."""


class EpisodeFormat(Protocol):
    """One kind of episode file."""

    actions: Mapping[str, str]
    """Dataset by action space, `joint` or `ee`. Every file must have the first dataset."""
    ignored_datasets: tuple[str, ...]
    """Datasets of the format that reading does not need, such as lengths of compressed images."""

    def matches(self, file: h5py.File) -> bool:
        """Return True if `file` has this format, according to its contents."""

    def open_frames(self, file: h5py.File, camera: str) -> Frames:
        """Return a lazy view of a camera's images."""


class ActFormat:
    """Format of ACT: float32 or float64 vectors, with or without `qvel`.

    Every file that no other format matches is read like this. Its actions are taken for joint
    targets and its images for raw RGB.
    """

    actions: Mapping[str, str] = {"joint": "action"}
    ignored_datasets: tuple[str, ...] = ()

    def matches(self, file: h5py.File) -> bool:
        return True

    def open_frames(self, file: h5py.File, camera: str) -> Frames:
        return file[f"{IMAGES}/{camera}"]


class ImfRayFormat(ActFormat):
    """Format of this project: ACT with root attributes, and optionally both action spaces."""

    actions: Mapping[str, str] = {"joint": "action", "ee": "action_ee"}

    def matches(self, file: h5py.File) -> bool:
        return "action_space" in file.attrs


class ActPlusPlusFormat(ActFormat):
    """Format of act-plus-plus: each image is a JPEG, zero-padded to the length of the longest."""

    ignored_datasets: tuple[str, ...] = ("compress_len",)

    def matches(self, file: h5py.File) -> bool:
        return bool(file.attrs.get("compress", False)) or "compress_len" in file

    def open_frames(self, file: h5py.File, camera: str) -> Frames:
        return _JpegFrames(file[f"{IMAGES}/{camera}"])


class RoboImiFormat(ActFormat):
    """Format of RoboIMI: `/action` has end-effector targets, per arm xyz, quaternion and gripper.

    No attribute says so. A file is recognized by actions of width 16 that contain two unit
    quaternions.
    """

    actions: Mapping[str, str] = {"ee": "action"}

    def matches(self, file: h5py.File) -> bool:
        action = file.get("action")
        if not isinstance(action, h5py.Dataset) or action.shape[1:] != (16,) or not len(action):
            return False
        if action.dtype.kind != "f":
            return False
        values = action[:].astype(np.float64)
        norms = np.stack(
            [np.linalg.norm(values[:, dims], axis=1) for dims in _EE_QUATERNION_SLICES]
        )
        return bool((np.abs(norms - 1) < _UNIT_TOLERANCE).all())


FORMATS: dict[str, EpisodeFormat] = {
    IMF_RAY: ImfRayFormat(),
    "act_plus_plus": ActPlusPlusFormat(),
    "roboimi": RoboImiFormat(),
    "act": ActFormat(),
}
"""Formats by name, the choices of `data.format`.

`auto` uses the first format that matches. Specific formats therefore come before general ones.
"""


def format_name(file: h5py.File, requested: str) -> str:
    """Return the name of a file's format: `requested`, or for `auto` the first that matches."""
    if requested != AUTO:
        return requested
    return next(name for name, format in FORMATS.items() if format.matches(file))


class _JpegFrames:
    """Decodes a dataset of padded JPEGs (T, max_length) uint8 to images (T, H, W, 3)."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        if dataset.ndim != 2 or dataset.dtype != np.uint8:
            raise UserError(f"{dataset.name} is {dataset.dtype}{dataset.shape}, not padded JPEGs")
        self._dataset = dataset
        self.dtype = dataset.dtype

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """(T, H, W, 3), with the size of the first image."""
        image_shape = self[slice(0, 1)].shape[1:] if len(self._dataset) else (0, 0, 3)
        return (len(self._dataset), *image_shape)

    def __getitem__(self, steps: slice, /) -> np.ndarray:
        images = [self._decode(padded) for padded in self._dataset[steps]]
        if len({image.shape for image in images}) > 1:
            raise UserError(f"{self._dataset.name} has JPEGs of different sizes")
        return np.stack(images)

    def _decode(self, padded: np.ndarray) -> np.ndarray:
        content = padded.tobytes().rstrip(b"\0")
        if not content.endswith(JPEG_END):  # a decoder would fill in the missing part
            raise UserError(f"{self._dataset.name} has a JPEG that is cut off")
        try:
            image = Image.open(io.BytesIO(content), formats=["JPEG"]).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{self._dataset.name} has a JPEG that cannot be read") from error
        # The files were written with OpenCV, which takes arrays for BGR, from RGB arrays.
        return np.asarray(image)[..., ::-1]
