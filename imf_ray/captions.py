"""Captions of images and videos, in a font that is legible at their normal size."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT_SIZE, LINE_HEIGHT = 13, 18
"""Size of the text and distance of two lines in pixels."""
MARGIN = 3
"""Space at the left and right of a line in pixels."""
ELLIPSIS = "…"
Color = tuple[int, int, int]


def caption(
    lines: Sequence[str], width: int, color: Color = (0, 0, 0), background: Color = (255, 255, 255)
) -> Image.Image:
    """Return lines of text as an image of a width in pixels, `LINE_HEIGHT` high per line.

    The middle of a line that is too long is replaced by an ellipsis.
    """
    image = Image.new("RGB", (width, len(lines) * LINE_HEIGHT), background)
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        text = fit(line, width - 2 * MARGIN)
        draw.text((MARGIN, row * LINE_HEIGHT + 1), text, fill=color, font=_font())
    return image


def wrap(text: str, width: int) -> list[str]:
    """Divide a text at spaces into lines that are at most `width` pixels wide with their margins.

    Longer words have lines of their own.
    """
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _length(longer) <= width - 2 * MARGIN:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def fit(text: str, width: int) -> str:
    """Return a text that is at most `width` pixels wide, without its middle if it is too long."""
    if _length(text) <= width:
        return text
    for length in range(len(text) - 1, 0, -1):
        head, tail = (length + 1) // 2, length // 2
        shortened = f"{text[:head]}{ELLIPSIS}{text[len(text) - tail :]}"
        if _length(shortened) <= width:
            return shortened
    return ""


def _length(text: str) -> float:
    return _font().getlength(text)


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return matplotlib's font, which has the letters of all European languages.

    matplotlib itself is not imported, because that takes long.
    """
    package = importlib.util.find_spec("matplotlib")
    if package is not None and package.origin is not None:
        file = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), FONT_SIZE)
    return ImageFont.load_default(FONT_SIZE)
