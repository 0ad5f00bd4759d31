"""Order of the color channels of stored images: rgb or bgr, and where the order is known from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from imf_ray.errors import UserError

AUTO, RGB, BGR = "auto", "rgb", "bgr"
"""Choices of `data.channel_order`."""
OTHER_ORDER = {RGB: BGR, BGR: RGB}
"""The order with red and blue exchanged, by order."""
ORDER_ATTRIBUTE = "channel_order"
"""Attribute that records the order, of a camera's dataset or of the file."""
RAW = "raw"
"""`StoredImages.encoding` of images that are stored as arrays."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredImages:
    """Description of the images of one camera, as a file stores them."""

    height: int
    width: int
    encoding: str
    """`RAW`, or the encodings of the images, for example `JPEG` or `JPEG, PNG`."""
    has_color: bool
    """False if all images are grey, so that the channel order makes no difference."""
    channel_order: str | None
    """The order that the file or its format records: `RGB`, `BGR`, or the text of an attribute that
    names neither. None if the file records no order."""

    def read_order(self, option: str) -> str:
        """Return `RGB` or `BGR`, the order that reading assigns to the stored channels."""
        return resolve_order(option, self.channel_order, self.encoding != RAW)

    def is_assumed(self, option: str) -> bool:
        """Return True if neither the file nor the option `data.channel_order` states the order."""
        return self.has_color and self.channel_order not in OTHER_ORDER and option == AUTO

    def contradicts(self, option: str) -> bool:
        """Return True if the file states another order than the option `data.channel_order`."""
        is_known = self.channel_order in OTHER_ORDER
        return self.has_color and is_known and option not in (AUTO, self.channel_order)

    def lacks_order(self, option: str) -> bool:
        """Return True if the file records an unknown order, and the option does not state one."""
        return self.channel_order is not None and self.is_assumed(option)

    def describe(self, option: str) -> str:
        """Return encoding and order in words, for example `JPEG, bgr (assumed)`."""
        if not self.has_color:
            return f"{self.encoding}, grey"
        assumed = " (assumed)" if self.is_assumed(option) else ""
        return f"{self.encoding}, {self.read_order(option)}{assumed}"


def resolve_order(option: str, recorded: str | None, is_encoded: bool) -> str:
    """Return the channel order, `RGB` or `BGR`, in which images are stored.

    Without a record and without an option, arrays are taken for RGB, as ACT writes them. Encoded
    images are taken for what act-plus-plus writes: OpenCV, which expects BGR, encodes RGB arrays.

    Args:
        option: value of `data.channel_order`.
        recorded: see `StoredImages.channel_order`.
        is_encoded: True for JPEG and PNG, False for arrays.
    """
    if recorded in OTHER_ORDER:
        return recorded
    if option != AUTO:
        return option
    return BGR if is_encoded else RGB


def check_channel_order(
    episodes: Mapping[str, Mapping[str, StoredImages]], option: str, folder: object
) -> None:
    """Check `data.channel_order` against a data set, and warn if an order has to be assumed.

    There is at most one warning. It is about encoded images only, because arrays are nearly always
    RGB.

    Args:
        episodes: for each file, the images of the cameras that are read.
        option: value of `data.channel_order`.
        folder: the data set.

    Raises:
        UserError: a file records another order than the option states, or an unknown order that
            the option has to state.
    """
    assumed = set()
    for path, cameras in episodes.items():
        for camera, images in cameras.items():
            if images.contradicts(option):
                raise UserError(
                    f"data.channel_order={option} contradicts {path}, which has the images of "
                    f"camera {camera} in {images.channel_order} order. Set data.channel_order="
                    f"{AUTO}: it takes what each file records."
                )
            if images.lacks_order(option):
                raise UserError(
                    f"The attribute {ORDER_ATTRIBUTE} of camera {camera} in {path} is "
                    f"{images.channel_order!r}, not {RGB} or {BGR}. Set data.channel_order={RGB} "
                    f"or data.channel_order={BGR}, whichever order the images have."
                )
            if images.is_assumed(option) and images.encoding != RAW:
                assumed.add(f"{camera} ({images.encoding})")
    if assumed:
        log.warning(
            "The channel order of the encoded images in %s is not recorded: %s. They are taken "
            "for %s, as act-plus-plus stores them, so red and blue are swapped after decoding. "
            "The contact sheet of `imf-ray dataset inspect` shows the result. Set "
            "data.channel_order=%s if its colors are right, or data.channel_order=%s if red and "
            "blue are exchanged.",
            *(folder, ", ".join(sorted(assumed)), BGR, BGR, RGB),
        )
