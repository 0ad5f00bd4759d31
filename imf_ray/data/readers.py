"""The kinds of HDF5 episode files that are read: where each keeps what. docs/formats.md has a page
on adding one.

All follow ACT's layout of `/action` and `/observations/{qpos,qvel,images/CAMERA}`; a format says
how its files are known, what space its actions are in, and how a camera's frames come as uint8.
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
IMAGES = "observations/images"
_UNIT_TOLERANCE = 1e-3
_EE_QUATERNIONS = (slice(3, 7), slice(11, 15))


class Frames(Protocol):
    """A camera's pictures, read as they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, H, W, 3)."""

    @property
    def dtype(self) -> np.dtype:
        """uint8, if the file is good."""

    def __getitem__(self, steps: slice, /) -> np.ndarray:
        """The pictures (n, H, W, 3) of these steps."""


class EpisodeFormat(Protocol):
    """One kind of file."""

    actions: Mapping[str, str]
    """The dataset of each action space, `joint` and `ee`; the first one every file must hold."""
    bookkeeping: tuple[str, ...]
    """Datasets of theirs that are not needed to read them."""

    def recognizes(self, file: h5py.File) -> bool:
        """Whether this is such a file, judged by what is in it."""

    def frames(self, file: h5py.File, camera: str) -> Frames:
        """A camera's pictures."""


class ActFormat:
    """ACT's files (float32 or float64, with or without qvel), and whatever else is laid out so.

    Joint actions; raw RGB pictures.
    """

    actions: Mapping[str, str] = {"joint": "action"}
    bookkeeping: tuple[str, ...] = ()

    def recognizes(self, file: h5py.File) -> bool:
        return True

    def frames(self, file: h5py.File, camera: str) -> Frames:
        return file[f"{IMAGES}/{camera}"]


class ImfRayFormat(ActFormat):
    """Our own files: attributes say what shapes cannot, and both action spaces are recorded."""

    actions: Mapping[str, str] = {"joint": "action", "ee": "action_ee"}

    def recognizes(self, file: h5py.File) -> bool:
        return "action_space" in file.attrs


class ActPlusPlusFormat(ActFormat):
    """act-plus-plus files: each picture is a JPEG, padded with zeros to the longest."""

    bookkeeping: tuple[str, ...] = ("compress_len",)

    def recognizes(self, file: h5py.File) -> bool:
        return bool(file.attrs.get("compress", False)) or "compress_len" in file

    def frames(self, file: h5py.File, camera: str) -> Frames:
        return _JpegFrames(file[f"{IMAGES}/{camera}"])


class RoboImiFormat(ActFormat):
    """RoboIMI's files: `/action` holds end-effector targets, twice xyz, quaternion, gripper.

    They have no attribute that says so; two unit quaternions in each of the 16-wide actions do.
    """

    actions: Mapping[str, str] = {"ee": "action"}

    def recognizes(self, file: h5py.File) -> bool:
        action = file.get("action")
        if not isinstance(action, h5py.Dataset) or action.shape[1:] != (16,) or not len(action):
            return False
        if action.dtype.kind != "f":
            return False
        values = action[:].astype(np.float64)
        norms = np.stack([np.linalg.norm(values[:, place], axis=1) for place in _EE_QUATERNIONS])
        return bool((np.abs(norms - 1) < _UNIT_TOLERANCE).all())


FORMATS: dict[str, EpisodeFormat] = {
    IMF_RAY: ImfRayFormat(),
    "act_plus_plus": ActPlusPlusFormat(),
    "roboimi": RoboImiFormat(),
    "act": ActFormat(),
}
"""By name, in the order in which they are tried."""


def format_of(file: h5py.File, name: str) -> str:
    """The name of a file's format: the first that recognizes it, or the one that was asked for."""
    if name != AUTO:
        return name
    return next(known for known, kind in FORMATS.items() if kind.recognizes(file))


def center_crop_resize(frames: np.ndarray, size: int) -> np.ndarray:
    """The central square of pictures (n, H, W, 3), scaled to (n, size, size, 3) where it is not.

    A square picture of the same camera in MuJoCo, whose field of view is vertical, shows the same.
    """
    height, width = frames.shape[1:3]
    if (height, width) == (size, size):
        return frames
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    inside = frames[:, top : top + side, left : left + side]
    scaled = [Image.fromarray(f).resize((size, size), Image.Resampling.BILINEAR) for f in inside]
    return np.stack([np.asarray(picture) for picture in scaled])


class _JpegFrames:
    """JPEGs (T, longest) uint8 as pictures (T, H, W, 3)."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        if dataset.ndim != 2 or dataset.dtype != np.uint8:
            raise UserError(f"{dataset.name} is {dataset.dtype}{dataset.shape}, not padded JPEGs")
        self._dataset = dataset
        self.dtype = dataset.dtype

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the first picture, and as many as there are."""
        first = self[slice(0, 1)].shape[1:] if len(self._dataset) else (0, 0, 3)
        return (len(self._dataset), *first)

    def __getitem__(self, steps: slice, /) -> np.ndarray:
        pictures = [self._decode(packed) for packed in self._dataset[steps]]
        if len({picture.shape for picture in pictures}) > 1:
            raise UserError(f"{self._dataset.name} holds JPEGs of unequal sizes")
        return np.stack(pictures)

    def _decode(self, packed: np.ndarray) -> np.ndarray:
        content = packed.tobytes().rstrip(b"\0")  # the padding
        if not content.endswith(JPEG_END):  # a decoder would make up the rest
            raise UserError(f"{self._dataset.name} holds a JPEG that is cut off")
        try:
            picture = Image.open(io.BytesIO(content), formats=["JPEG"]).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{self._dataset.name} holds a JPEG that cannot be read") from error
        # OpenCV wrote them from RGB arrays as if they were BGR, and reads them back likewise.
        return np.asarray(picture)[..., ::-1]
