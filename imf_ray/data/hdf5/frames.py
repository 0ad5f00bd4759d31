"""Images of one camera in an HDF5 file: recognizes how they are stored and reads them as RGB.

Images are arrays, or JPEG and PNG images in rows of bytes. Both are recognized by their contents.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Protocol

import h5py
import numpy as np

from imf_ray.data.channel_order import AUTO, BGR, RAW, StoredImages, resolve_order
from imf_ray.data.image_decoding import DecodedImage, decode_image, image_encoding, is_opaque
from imf_ray.errors import UserError

_CHECK_STEPS = 16
"""Number of images that a check reads at once."""


class Frames(Protocol):
    """Images of one camera, read on demand."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, H, W, 3)."""

    def __getitem__(self, steps: slice, /) -> np.ndarray:
        """Read the images (n, H, W, 3) uint8 RGB of environment steps `steps`.

        Raises:
            UserError: an image is damaged. The message names its step.
        """

    def check(self) -> StoredImages:
        """Read all images that must be converted, and describe how all of them are stored.

        Raises:
            UserError: an image is damaged. The message names its step.
        """


def open_frames(
    dataset: h5py.Dataset, option: str = AUTO, recorded_order: str | None = None
) -> Frames:
    """Recognize how the dataset of a camera stores images.

    Args:
        option: value of `data.channel_order`.
        recorded_order: see `StoredImages.channel_order`.

    Raises:
        UserError: the dataset does not hold images that can be read. The message says what it is.
    """
    kind = EncodedFrames if _is_encoded(dataset) else ArrayFrames
    return kind(dataset, option, recorded_order)


def check_frames(frames: Frames, camera: str, length: int) -> StoredImages:
    """Check that a camera has one readable image per step, and describe its images.

    Raises:
        UserError: the number of images is not `length`, or an image is damaged.
    """
    if frames.shape[0] != length:
        raise UserError(f"camera {camera} has {frames.shape[0]} images, but {length} steps are due")
    return frames.check()


class ArrayFrames:
    """Images (T, H, W, C), (T, C, H, W) or (T, H, W) uint8, where C is 1, 3 or 4."""

    def __init__(self, dataset: h5py.Dataset, option: str, recorded_order: str | None) -> None:
        self._dataset = dataset
        self._channel_axis = _channel_axis(dataset)
        sizes = list(dataset.shape)
        self._channels = 1 if self._channel_axis is None else sizes.pop(self._channel_axis)
        self.shape = (*sizes, 3)
        self._recorded_order = recorded_order
        self._swap = resolve_order(option, recorded_order, is_encoded=False) == BGR

    def __getitem__(self, steps: slice, /) -> np.ndarray:
        images = self._dataset[steps]
        if self._channel_axis is None:
            images = images[..., None]
        elif self._channel_axis == 1:
            images = np.moveaxis(images, 1, -1)
        if self._channels == 1:
            return np.repeat(images, 3, axis=-1)
        if self._channels == 4:
            images = self._without_alpha(images, steps.start)
        return np.ascontiguousarray(images[..., ::-1] if self._swap else images)

    def _without_alpha(self, images: np.ndarray, first_step: int) -> np.ndarray:
        for index, image in enumerate(images):
            if not is_opaque(image[..., 3]):
                raise UserError(
                    f"{_camera(self._dataset)} has images of four channels whose fourth is not an "
                    f"opaque alpha channel at step {first_step + index}; images must have red, "
                    "green and blue"
                )
        return images[..., :3]

    def check(self) -> StoredImages:
        if self._channels == 4:  # arrays of other shapes have no invalid values
            for start in range(0, len(self._dataset), _CHECK_STEPS):
                self[start : start + _CHECK_STEPS]
        height, width = self.shape[1:3]
        return StoredImages(height, width, RAW, self._channels != 1, self._recorded_order)


class EncodedFrames:
    """JPEG and PNG images, each in a row of bytes that may be padded at its end."""

    def __init__(self, dataset: h5py.Dataset, option: str, recorded_order: str | None) -> None:
        self._dataset = dataset
        self._recorded_order = recorded_order
        self._swap = resolve_order(option, recorded_order, is_encoded=True) == BGR

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """(T, H, W, 3), with the size of the first image."""
        images = self._decode(slice(0, 1))
        return (len(self._dataset), *(images[0].pixels.shape if images else (0, 0, 3)))

    def __getitem__(self, steps: slice, /) -> np.ndarray:
        images = self._decode(steps)
        return np.stack([i.pixels[..., ::-1] if self._swap else i.pixels for i in images])

    def check(self) -> StoredImages:
        encodings, has_color = set(), False
        for start in range(0, len(self._dataset), _CHECK_STEPS):
            images = self._decode(slice(start, start + _CHECK_STEPS))
            for step, image in enumerate(images, start):
                if image.pixels.shape != self.shape[1:]:
                    raise UserError(
                        f"the image size of {_camera(self._dataset)} changes at step {step}"
                    )
                encodings.add(image.encoding)
                has_color = has_color or not image.is_grey
        encoding = ", ".join(sorted(encodings))
        height, width = self.shape[1:3]
        return StoredImages(height, width, encoding, has_color, self._recorded_order)

    def _decode(self, steps: slice) -> list[DecodedImage]:
        """Decode images, which must be consecutive."""
        images = []
        for step, row in enumerate(self._dataset[steps], start=steps.start):
            try:
                images.append(decode_image(_content(row)))
            except UserError as error:
                raise UserError(
                    f"the image of {_camera(self._dataset)} at step {step} is {error}"
                ) from error
        return images


def _is_encoded(dataset: h5py.Dataset) -> bool:
    """Return True if each step of a dataset is a row of bytes, according to type and shape."""
    dtype, row_shape = dataset.dtype, dataset.shape[1:]
    is_single_value = math.prod(row_shape) == 1
    if dtype.hasobject:  # of variable length
        element = h5py.check_vlen_dtype(dtype)
        is_bytes = element in (str, bytes) or (element is not None and element.itemsize == 1)
        return is_single_value and is_bytes
    if dtype.kind in "SV" and dtype.names is None and dtype.itemsize > 1:
        return is_single_value
    if dtype.itemsize != 1 or dtype.kind == "b" or len(row_shape) == 0:
        return False
    if len(row_shape) == 1:
        return True
    # An axis of length 1: OpenCV's older versions encode to (L, 1). Images can be as narrow.
    is_row = math.prod(row_shape) == max(row_shape) and len(dataset) > 0
    return is_row and image_encoding(dataset[0].tobytes()) is not None


def _channel_axis(dataset: h5py.Dataset) -> int | None:
    """Return the axis of the channels of an array of images; None if there is no such axis.

    Raises:
        UserError: the dataset is not an array of images, according to its type and shape.
    """
    camera, dtype, shape = _camera(dataset), dataset.dtype, dataset.shape
    is_grey = len(shape) == 3
    axis = next((axis for axis in (-1, 1) if len(shape) == 4 and shape[axis] in (1, 3, 4)), None)
    if (axis is None and not is_grey) or 0 in shape[1:]:
        raise UserError(
            f"{camera} is {dtype}{shape}, not images: (T, H, W, 3) uint8, or one row of bytes of "
            "a JPEG or PNG per step"
        )
    if dtype != np.uint8:
        details = ""
        if dtype.kind in "iuf" and len(dataset):
            first, is_depth = dataset[0], is_grey or shape[axis] == 1
            details = f" with values from {first.min():g} to {first.max():g} at step 0"
            details += ", perhaps depth" if is_depth else ""
        raise UserError(
            f"{camera} has images of type {dtype}{details}; images must be uint8 from 0 to 255"
        )
    return axis


def _camera(dataset: h5py.Dataset) -> str:
    return f"camera {str(dataset.name).rpartition('/')[2]}"


def _content(row: np.ndarray | np.void | bytes) -> bytes:
    """Return the bytes of one row of a dataset."""
    if isinstance(row, np.ndarray) and row.dtype.hasobject:
        row = row.item()
    return row if isinstance(row, bytes) else row.tobytes()
