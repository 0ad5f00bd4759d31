"""Videos and images of a folder, as files next to a page or as part of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from imf_ray.pages.model import Media

MIME_TYPES = {".mp4": "video/mp4", ".png": "image/png"}
"""Content type of the files that pages show, by suffix."""


@dataclass
class MediaFinder:
    """Finds the videos and images of one page, and embeds those that are small enough.

    `total_bytes` becomes smaller with each embedded file.
    """

    root: Path
    """Folder of the page, to which links are relative."""
    max_file_bytes: int = 0
    """Size up to which a file is embedded."""
    total_bytes: int = 0
    """Size of all further files that may be embedded."""

    def find(self, captions: Iterable[tuple[Path, str]]) -> list[Media]:
        """Return those files that exist.

        Args:
            captions: path and caption of each file, most important first.
        """
        media = []
        for path, caption in captions:
            try:
                num_bytes = path.stat().st_size
                is_embedded = num_bytes <= min(self.max_file_bytes, self.total_bytes)
                content = path.read_bytes() if is_embedded else None
            except OSError:  # there is none
                continue
            if content is not None:
                self.total_bytes -= len(content)
            link = quote(os.path.relpath(path, self.root))
            media.append(Media(caption, link, MIME_TYPES[path.suffix], num_bytes, content))
        return media
