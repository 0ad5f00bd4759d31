"""Videos and images of a folder, as files next to a page or as part of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from imf_ray.pages.model import Media

MIME_TYPES = {".mp4": "video/mp4", ".png": "image/png"}
"""Content type of the files that pages show, by suffix."""


@dataclass
class EmbeddingLimits:
    """What a page may still embed; larger files are linked.

    `total_bytes` becomes smaller with each embedded file.
    """

    file_bytes: int = 0
    total_bytes: int = 0


def find_media(
    root: Path, captions: Iterable[tuple[Path, str]], limits: EmbeddingLimits
) -> list[Media]:
    """Return those files that exist.

    Args:
        root: folder of the page.
        captions: path and caption of each file, most important first.
        limits: what the page may embed.
    """
    media = []
    for path, caption in captions:
        try:
            num_bytes = path.stat().st_size
            is_embedded = num_bytes <= min(limits.file_bytes, limits.total_bytes)
            content = path.read_bytes() if is_embedded else None
        except OSError:  # there is none
            continue
        if content is not None:
            limits.total_bytes -= len(content)
        link = os.path.relpath(path, root)
        media.append(Media(caption, link, MIME_TYPES[path.suffix], num_bytes, content))
    return media
