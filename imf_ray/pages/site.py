"""The pages and media files of the board, by their paths below one folder or URL.

The path of a page is that of its folder, so the page of a run links to its media as its
`report.html` does.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from imf_ray.errors import UserError
from imf_ray.folders import RUNS, FolderKind, folder_kind
from imf_ray.pages.follower import Follower, Page, Read
from imf_ray.pages.media_files import MIME_TYPES
from imf_ray.pages.mirror import Mirror
from imf_ray.pages.model import Snapshot
from imf_ray.pages.render import Live
from imf_ray.storage import display_path, is_remote, local_dir

MEDIA_FOLDERS = (*RUNS, FolderKind.EVALUATION, FolderKind.COMPARISON)
"""Kinds of folders whose media are served, also from their subfolders."""
FIRST_PATIENCE_S, PATIENCE_S = 10.0, 1.0
"""Seconds for which a request waits for the first read of a folder, and for a later one.

Then it is answered with what is there."""
FORGET_AFTER_S = 300.0
"""Seconds without a request after which a folder is no longer kept in memory."""
MakeReader = Callable[[Path], Read]
Render = Callable[[Snapshot, Live], str]


class NotFoundError(Exception):
    """A path is neither a page nor a media file. The message says why."""


class Site:
    """The pages and media files below one folder or URL.

    Folders are read in one thread, each only while its page is requested, and once for all who
    request it.

    Args:
        location: the folder or URL.
        make_reader: returns the function that reads a local folder.
        render: returns the page of a snapshot as HTML.

    Raises:
        UserError: the URL's file system is unknown or needs a package that is not installed.
    """

    def __init__(self, location: str, make_reader: MakeReader, render: Render) -> None:
        self._mirror = Mirror(location, MIME_TYPES) if is_remote(location) else None
        self._root = local_dir(location) if self._mirror is None else self._mirror.root
        self._make_reader, self._render = make_reader, render
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="board")
        self._followers: dict[str, Follower] = {}
        self._refreshing: dict[str, asyncio.Future[None]] = {}
        self._requested: dict[str, float] = {}

    def close(self) -> None:
        """Stop reading, and delete the copy of a URL."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self._mirror is not None:
            self._mirror.close()

    @property
    def idle_s(self) -> float:
        """Seconds since the last request of a page; infinite before the first one."""
        return time.monotonic() - max(self._requested.values(), default=-float("inf"))

    async def page(self, path: str) -> Page:
        """Return the newest page of a folder, which is read again if that is due.

        Args:
            path: path of the folder below the root, without slashes at its ends; empty for the
                root itself.

        Raises:
            NotFoundError: the path has no page.
        """
        self._forget_idle()
        folder = self._join(path)
        self._requested[path] = time.monotonic()
        if path not in self._followers:
            read = _FolderReader(folder, self._root, self._mirror, self._make_reader)
            live = Live(home="../" * len(folder.relative_to(self._root).parts))
            follower = Follower(
                display_path(folder), read, lambda content: self._render(content, live)
            )
            self._followers[path] = follower
        follower = self._followers[path]
        if follower.is_due and path not in self._refreshing:
            loop = asyncio.get_running_loop()
            self._refreshing[path] = loop.run_in_executor(self._executor, follower.refresh)
            self._refreshing[path].add_done_callback(lambda _: self._refreshing.pop(path))
        if path in self._refreshing:
            patience = FIRST_PATIENCE_S if follower.page is None else PATIENCE_S
            await asyncio.wait([self._refreshing[path]], timeout=patience)
        if follower.page is None:
            return follower.placeholder("It is being read. Its content appears here after that.")
        if path and not follower.has_page:
            self._forget(path)
            raise NotFoundError(follower.problem or "")
        return follower.page

    async def media(self, path: str) -> Path:
        """Return the local path of a media file; download it if necessary.

        Args:
            path: path of the file below the root.

        Raises:
            NotFoundError: there is no such file, or it is not served.
            StorageError: the URL cannot be read.
        """
        file = self._join(path)
        if file.suffix.lower() not in MIME_TYPES or file.name.startswith("."):
            raise NotFoundError(f"{path} is not a video or an image.")
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, self._find_media, file
        )

    def _find_media(self, file: Path) -> Path:
        if self._mirror is not None:
            self._mirror.fetch(file)
        folders = [folder for folder in file.parents if folder.is_relative_to(self._root)]
        is_served = any(folder_kind(folder) in MEDIA_FOLDERS for folder in folders)
        if not (is_served and os.path.isfile(file) and _is_inside(file, self._root)):
            raise NotFoundError(f"There is no video or image {display_path(file)} in a run.")
        return file.resolve()

    def _join(self, path: str) -> Path:
        """Return the local path of a path below the root."""
        names = path.split("/") if path else []
        if any(name in ("", ".", "..") or "\0" in name for name in names):
            raise NotFoundError("The path is not valid.")
        return self._root.joinpath(*names)

    def _forget_idle(self) -> None:
        """Forget the folders that nobody has requested for long."""
        now = time.monotonic()
        for path, requested in [*self._requested.items()]:
            if now > requested + FORGET_AFTER_S:
                self._forget(path)

    def _forget(self, path: str) -> None:
        self._requested.pop(path, None)
        self._followers.pop(path, None)


class _FolderReader:
    """Reads one folder of a site. A folder that was deleted is read from scratch as it returns."""

    def __init__(
        self, folder: Path, root: Path, mirror: Mirror | None, make_reader: MakeReader
    ) -> None:
        self._folder, self._root, self._mirror = folder, root, mirror
        self._make_reader = make_reader
        self._read: Read | None = None

    def __call__(self) -> Snapshot:
        """Return the content of the folder.

        Raises:
            UserError: it is missing, is outside of the root, or has no page.
        """
        if self._mirror is not None:
            self._mirror.sync(self._folder)
        if not self._folder.is_dir():
            self._read = None
            raise UserError(f"{display_path(self._folder)} does not exist.")
        if not _is_inside(self._folder, self._root):
            raise UserError(
                f"{display_path(self._folder)} is a link to a folder elsewhere. See it with: "
                f"imf-ray board {self._folder.resolve()}"
            )
        if self._read is None:
            self._read = self._make_reader(self._folder)
        return self._read()


def _is_inside(path: Path, root: Path) -> bool:
    """Return True if a path is below the root, also after its symbolic links are followed."""
    return path.resolve().is_relative_to(root.resolve())
