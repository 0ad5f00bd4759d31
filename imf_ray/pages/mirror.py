"""A temporary local copy of the small files below a URL, so that pages can be read from disk.

It is not the copy in which runs on this machine work (`imf_ray.storage`): the board must neither
replace nor delete any file of theirs.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from urllib.parse import quote

from imf_ray.checkpoint_dir import CONFIG_FILE
from imf_ray.folders import SPACE_FILE
from imf_ray.storage import (
    REMOTE_VERSION_KEYS,
    is_connection_error,
    parse_path,
    storage_errors,
)

SYNC_INTERVAL_S = 5.0
"""Minimum number of seconds between two listings of a folder."""
MAX_SYNC_TIME_FRACTION = 0.1
"""Maximum fraction of the time that is spent on listing and downloading."""
COPIED_SUFFIXES = (".json", ".jsonl", ".yaml")
SKIPPED_DIRS = {"tune": SPACE_FILE, "swanlab": CONFIG_FILE}
"""Folders that no page shows, and the file next to them in the sweep or run that they belong to."""
SKIPPED_PREFIXES = (".", "samples_rank_")
"""Beginnings of the names of temporary files, and of long logs that no page shows."""
Version = tuple[Any, ...]
"""Size of a file in bytes, and what else changes with its content."""


class Mirror:
    """A temporary copy of the configurations, logs and results below a URL.

    Media are empty files of the right size, until `fetch` downloads them.

    Args:
        url: the URL of a run, a sweep, or a folder of them.
        media_suffixes: suffixes of media files, in lower case.

    Raises:
        UserError: the URL's file system is unknown or needs a package that is not installed.
    """

    def __init__(self, url: str, media_suffixes: Collection[str]) -> None:
        self._url, self._media_suffixes = url.rstrip("/"), media_suffixes
        parse_path(self._url)
        self._folder = tempfile.TemporaryDirectory(prefix="imf_ray_board_")
        scheme, _, rest = self._url.partition("://")
        bucket, *names = rest.split("/")
        # `imf_ray.storage.remote_path` finds the URL of a file in its path.
        self.root = Path(self._folder.name, quote(f"{scheme}://{bucket}", safe=""), *names)
        self._versions: dict[Path, Version] = {}
        """Version of each file of the copy."""
        self._fetched: set[Path] = set()
        self._next_sync: dict[Path, float] = {}

    def close(self) -> None:
        """Delete the copy."""
        self._folder.cleanup()

    def sync(self, folder: Path) -> None:
        """Download what changed in a folder, unless that was done a moment ago.

        Files that were deleted at the URL are deleted from the copy as well.

        Args:
            folder: path in the copy.

        Raises:
            StorageError: the URL cannot be read.
        """
        started = time.monotonic()
        if started < self._next_sync.get(folder, 0.0):
            return
        remote = self._remote(folder)
        try:
            with storage_errors(remote, "read"):
                try:
                    self._copy_changes(remote, folder)
                except FileNotFoundError:  # a file was deleted after it had been listed
                    self._copy_changes(remote, folder)
        finally:
            now = time.monotonic()
            pause = max(SYNC_INTERVAL_S, (now - started) / MAX_SYNC_TIME_FRACTION)
            self._next_sync[folder] = now + pause

    def fetch(self, file: Path) -> None:
        """Download a media file of the copy, unless that was done.

        Raises:
            StorageError: the URL cannot be read.
        """
        if file in self._fetched or file not in self._versions:
            return
        remote = self._remote(file)
        partial = file.with_name(f".{file.name}.partial")
        with storage_errors(remote, "read"):
            remote.fs.get_file(remote.path, str(partial))
        os.replace(partial, file)
        self._fetched.add(file)

    def _remote(self, path: Path) -> Any:
        """Return the URL of a file or folder of the copy."""
        return parse_path("/".join([self._url, *path.relative_to(self.root).parts]))

    def _copy_changes(self, remote: Any, folder: Path) -> None:
        """Make a folder of the copy equal to the URL, except for the contents of media files."""
        listed = {folder / name: (path, version) for name, path, version in self._list(remote)}
        for file in [file for file in self._versions if file.is_relative_to(folder)]:
            if file not in listed:
                self._delete(file)
        changed = {
            file: path
            for file, (path, version) in listed.items()
            if self._versions.get(file) != version
        }
        for file in changed:
            file.parent.mkdir(parents=True, exist_ok=True)
        copied = [file for file in changed if not self._is_media(file)]
        if copied:  # in one call, which file systems with latency make concurrent
            remote.fs.get([changed[file] for file in copied], [str(file) for file in copied])
        for file in changed:
            version = listed[file][1]
            if self._is_media(file):
                self._fetched.discard(file)
                with file.open("wb") as content:
                    content.truncate(version[0])
            self._versions[file] = version

    def _list(self, remote: Any) -> Iterator[tuple[PurePosixPath, str, Version]]:
        """Yield the relative path, the remote path and the version of each file to copy."""
        try:
            entries = remote.fs.find(remote.path, detail=True)
        except FileNotFoundError as error:
            if is_connection_error(error):
                raise
            return
        root = PurePosixPath(remote.path)
        infos = {PurePosixPath(path).relative_to(root): (path, entries[path]) for path in entries}
        for name, (path, info) in infos.items():
            is_copied = name.suffix in COPIED_SUFFIXES or self._is_media(name)
            if not is_copied or name.name.startswith(SKIPPED_PREFIXES):
                continue
            if any(
                parent.name in SKIPPED_DIRS and parent.with_name(SKIPPED_DIRS[parent.name]) in infos
                for parent in name.parents
            ):
                continue
            size = info["size"] if "size" in info else remote.fs.size(path)
            keys = [key for key in info if key.lower() in REMOTE_VERSION_KEYS.split()]
            yield name, path, (int(size), *(str(info[key]) for key in sorted(keys)))

    def _is_media(self, file: PurePath) -> bool:
        return file.suffix.lower() in self._media_suffixes

    def _delete(self, file: Path) -> None:
        """Delete a file of the copy, and the folders that are then empty."""
        file.unlink(missing_ok=True)
        del self._versions[file]
        self._fetched.discard(file)
        for parent in file.parents:
            if parent == self.root or any(parent.iterdir()):
                break
            parent.rmdir()
