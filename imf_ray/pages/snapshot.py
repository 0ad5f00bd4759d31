"""Reads the folder of a run, sweep, comparison or evaluation, or of several, for its page.

Nothing but the folder is read, so this works during and after a run on any machine that has the
folder. What was read is kept, and only files that changed are read again.
"""

from __future__ import annotations

import time
from pathlib import Path

from imf_ray.errors import UserError
from imf_ray.folders import FolderKind, display, folder_kind
from imf_ray.pages.file_cache import FileCache, Version, file_version
from imf_ray.pages.media_files import MediaFinder
from imf_ray.pages.model import Snapshot
from imf_ray.pages.snapshot_storage import ROW_READERS, RowReader, StorageReader
from imf_ray.storage import authoritative_path

Reader = RowReader | StorageReader
READERS: dict[FolderKind, type[Reader]] = {**ROW_READERS, FolderKind.STORAGE: StorageReader}
"""The reader of each kind of folder that has a page."""


class SnapshotReader:
    """Reads a folder again and again.

    Args:
        folder: local folder.
        links: rows have pages of their own, as on the board.
        media_root: folder of the page, to which links to videos are relative; None is `folder`.
        max_file_bytes: size up to which a video becomes part of the page.
        max_total_bytes: size of all videos together that become part of the page.
    """

    def __init__(
        self,
        folder: Path,
        links: bool = True,
        media_root: Path | None = None,
        max_file_bytes: int = 0,
        max_total_bytes: int = 0,
    ) -> None:
        self._folder, self._links, self._media_root = folder, links, media_root or folder
        self._max_file_bytes, self._max_total_bytes = max_file_bytes, max_total_bytes
        self._kind = FolderKind.MISSING
        self._version: Version | None = None
        self._reader: Reader | None = None

    def read(self) -> Snapshot:
        """Return the current content.

        Raises:
            UserError: the folder is missing, or is none that has a page.
            OSError: the folder cannot be read.
        """
        version = file_version(self._folder)
        is_same = self._reader is not None and version == self._version
        kind = self._kind if is_same else folder_kind(self._folder)
        if kind not in READERS:
            shown = display(authoritative_path(self._folder))
            raise UserError(
                f"{shown} is {kind}, which has no page. Use the folder of a run, sweep, comparison "
                "or evaluation, or a folder of runs."
            )
        if self._reader is None or kind != self._kind:
            self._kind, self._reader = kind, READERS[kind](self._folder, FileCache(), self._links)
        self._version = version
        media = MediaFinder(self._media_root, self._max_file_bytes, self._max_total_bytes)
        return self._reader.read(time.time(), media)
