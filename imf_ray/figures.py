"""Fonts and colors of matplotlib figures."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

CJK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans",
)
"""Fonts for Chinese, Japanese and Korean names. matplotlib's own font has no such characters."""


@contextmanager
def plain_names() -> Iterator[None]:
    """Draw and write figures inside the `with` block with texts as they are.

    A dollar sign is no formula. Characters that no installed font has become boxes, without a
    warning.
    """
    import matplotlib
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = [
        *matplotlib.rcParams["font.family"],
        *(name for name in CJK_FONTS if name in installed),
    ]
    settings: Any = {"text.parse_math": False, "font.family": fonts}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def text_color(fill: Sequence[float]) -> str:
    """Return black or white, whichever has the higher contrast with a background.

    The contrast is at least 4.5, as WCAG 2.1 demands for legible text.

    Args:
        fill: red, green and blue between 0 and 1.
    """
    black_contrast = (_luminance(fill) + 0.05) / 0.05
    white_contrast = 1.05 / (_luminance(fill) + 0.05)
    return "black" if black_contrast > white_contrast else "white"


def _luminance(color: Sequence[float]) -> float:
    """Return the relative luminance of a color as WCAG 2.1 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
    red, green, blue = linear
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
