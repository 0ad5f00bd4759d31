"""Decodes JPEG and PNG images to RGB arrays, and names other contents by their first bytes."""

from __future__ import annotations

import io
import re
import struct
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from imf_ray.errors import UserError

JPEG, PNG = "JPEG", "PNG"
_SIGNATURES = {b"\xff\xd8\xff": JPEG, b"\x89PNG\r\n\x1a\n": PNG}
_OTHER_SIGNATURES = {
    "a WebP image": rb"RIFF....WEBP",
    "a GIF image": rb"GIF8[79]a",
    "a BMP image": rb"BM.{4}\0{4}",
    "a TIFF image": rb"II\*\0|MM\0\*",
    "an AVIF or HEIF image": rb".{4}ftyp(avi|hei|hev|mif|msf)",
    "a JPEG 2000 image": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "a JPEG XL image": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "a PNM image": rb"P[1-7]\s",
    "a QOI image": rb"qoif",
    "an OpenEXR image": rb"v/1\x01",
    "an MP4 video": rb".{4}ftyp",
    "a Matroska or WebM video": rb"\x1a\x45\xdf\xa3",
    "an AVI video": rb"RIFF....AVI ",
    "an H.264 or H.265 video": rb"\0?\0\0\x01",
    "a NumPy file": rb"\x93NUMPY|PK\x03\x04",
    "a Python pickle": rb"\x80[\x02-\x05]",
    "gzip data": rb"\x1f\x8b",
    "zlib data": rb"\x78[\x01\x5e\x9c\xda]",
    "base64 text": rb"/9j/|iVBORw0KGgo|data:image/",
}
"""Regular expressions of the first bytes of contents that are not read."""
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_JPEG_SCAN, _JPEG_END = b"\xda", b"\xff\xd9"
_PNG_BIT_DEPTH_OFFSET = 24


class DecodedImage(NamedTuple):
    """An image as an array."""

    pixels: np.ndarray
    """(H, W, 3) uint8 RGB."""
    encoding: str
    """`JPEG` or `PNG`."""
    is_grey: bool


def image_encoding(content: bytes) -> str | None:
    """Return the encoding of an image, `JPEG` or `PNG`, or None for other contents."""
    return next((name for start, name in _SIGNATURES.items() if content.startswith(start)), None)


def describe_content(content: bytes) -> str:
    """Return what `content` is, for example `a WebP image`, according to its first bytes."""
    if not content.strip(b"\0"):
        return "a row of zeros" if content else "empty"
    for name, pattern in _OTHER_SIGNATURES.items():
        if re.match(pattern, content, re.DOTALL):
            return name
    return f"a row of {len(content)} bytes that begins with {content[:4].hex(' ')}"


def decode_image(content: bytes) -> DecodedImage:
    """Decode a JPEG or PNG, as a picture viewer shows it.

    An EXIF orientation is applied. An opaque alpha channel is dropped. Bytes after the end of the
    image are ignored.

    Args:
        content: the image, possibly padded at its end.

    Raises:
        UserError: the content is another one, is damaged, or is an image that has no unique 8-bit
            RGB form. The message completes the sentence "the image is ...".
    """
    encoding = image_encoding(content)
    if encoding is None:
        raise UserError(f"{describe_content(content)}, not a JPEG or PNG image")
    if encoding == JPEG:
        content = _without_padding(content)
    elif len(content) > _PNG_BIT_DEPTH_OFFSET and content[_PNG_BIT_DEPTH_OFFSET] > 8:
        raise UserError("a PNG with 16 bits per channel; images must have 8")
    try:
        if encoding == PNG:  # only `verify` compares all checksums, and needs an object of its own
            Image.open(io.BytesIO(content), formats=[PNG]).verify()
        image = Image.open(io.BytesIO(content), formats=[encoding])
        image.load()
        if "exif" in image.info:
            ImageOps.exif_transpose(image, in_place=True)
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise UserError(f"a {encoding} that cannot be read ({error})") from error
    return DecodedImage(_to_rgb(image), encoding, image.mode in ("1", "L", "LA"))


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Return the pixels (H, W, 3) of an image without losing information."""
    if image.mode == "CMYK":
        raise UserError(f"a {image.format} in CMYK colors; images must be RGB or grey")
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        if not is_opaque(rgba[..., 3]):
            raise UserError(f"a {image.format} with transparent parts")
        return rgba[..., :3]
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def is_opaque(alpha: np.ndarray) -> bool:
    """Return True if an alpha channel uint8 of any shape is opaque everywhere."""
    return bool((alpha == 255).all())


def _without_padding(content: bytes) -> bytes:
    """Return the JPEG at the start of `content`.

    Raises:
        UserError: its end is missing. A decoder might fill in the missing part.
    """
    position = 2  # after the marker of the start
    while marker := _JPEG_MARKER.search(content, position):
        if marker.group(1) == _JPEG_SCAN:  # compressed data follow, which never contain the end
            end = content.find(_JPEG_END, marker.end())
            if end >= 0:
                return content[: end + len(_JPEG_END)]
            break
        # Segments are skipped, because a preview image in one of them has an end of its own.
        position = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2])
    raise UserError("a JPEG that is cut off")
