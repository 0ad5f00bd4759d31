"""Writing files so that they, or their lines, are complete or absent.

What is written into the working copy of a URL goes there, too.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from imf_ray.errors import StorageError
from imf_ray.storage import is_connection_error, remote_path, storage_errors, upload

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_DPI = 120
SYNC_INTERVAL_S, MAX_SYNC_TIME_FRACTION = 5.0, 0.05
"""A file that grows in a working copy is copied to its URL so often, and for no larger share of the
time."""
RETRY_DELAYS_S = (1.0, 10.0, 60.0, 300.0)
"""Pauses before what a disk or a network did not let through is tried again."""
MAX_LINE_BYTES = 2**20
"""Bytes from the end of a file in which a line that was cut off is looked for."""
log = logging.getLogger(__name__)
Result = TypeVar("Result")


def retry_io(attempt: Callable[[], Result]) -> Result:
    """What `attempt` returns; it is called again while a disk is full, or a network away.

    Raises:
        StorageError, OSError: it still fails after the last pause; or at once, if waiting does not
            help, as where a file or bucket is missing or nobody may write.
    """
    for pause in RETRY_DELAYS_S:
        try:
            return attempt()
        except (OSError, StorageError) as error:
            if any(map(_is_permanent, (error, error.__cause__))):
                raise
            log.warning("Again in %.0f s: %s", pause, error)
            time.sleep(pause)
    return attempt()


def _is_permanent(error: BaseException | None) -> bool:
    """Whether an error is one that does not pass by itself."""
    if isinstance(error, FileNotFoundError):
        return not is_connection_error(error)
    return isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


class JsonlWriter:
    """A file of lines that one process at a time adds to, as long as it may live.

    What an earlier process left of a line, as it died or the disk was full, is dropped.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("a+b", buffering=0)
        end = self._file.seek(0, os.SEEK_END)
        start = self._file.seek(max(0, end - MAX_LINE_BYTES))
        tail = self._file.read()
        self._end = start + tail.rfind(b"\n") + 1
        self._is_copy, self._next_push = (
            remote_path(path) is not None,
            time.monotonic() + SYNC_INTERVAL_S,
        )

    def add(self, line: str) -> None:
        """Write a line, which is then in the file whenever the process dies.

        Raises:
            StorageError: it does not fit on the disk; what is there of it is no line.
        """
        content = f"{line}\n".encode()
        with storage_errors(self._path, "written"):
            self._file.truncate(self._end)
            if self._file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._end += len(content)
        if self._is_copy and time.monotonic() >= self._next_push:
            self._push()

    def _push(self) -> None:
        """Copy the file, or say why that has to wait: its line is safe here."""
        begun = time.monotonic()
        try:
            upload(self._path)
        except StorageError as error:
            log.warning("Later: %s", error)
        now = time.monotonic()
        self._next_push = now + max(SYNC_INTERVAL_S, (now - begun) / MAX_SYNC_TIME_FRACTION)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        upload(self._path)


def append_line(path: Path, line: str) -> None:
    """Add one line to a file, which is made if need be; see `JsonlWriter`."""
    file = JsonlWriter(path)
    try:
        file.add(line)
    finally:
        file.close()


def read_lines(path: Path) -> list[str]:
    """The complete lines of a file, without their ends; none if there is no file."""
    if not path.is_file():
        return []
    *lines, _unfinished = path.read_bytes().split(b"\n")
    return [line.decode() for line in lines]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, sync it, and rename it into place; folders are made.

    Raises:
        StorageError: it cannot be written, and what was there before is there; or it is written
            here, but not at the URL of this working copy.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with storage_errors(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
            atomic_rename(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    upload(path)


def write_if_changed(path: Path, content: str) -> None:
    """Write a file atomically, unless that is what it holds: a full disk then does not matter."""
    if path.is_file() and path.read_bytes() == content.encode():
        upload(path)  # which may have failed when it was written
    else:
        write_atomically(path, content)


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure of matplotlib as a PNG; see `write_atomically`."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=FIGURE_DPI)
    write_atomically(path, content.getvalue())


def atomic_rename(partial: Path, path: Path) -> None:
    """Sync a finished file or folder and rename it to its final name."""
    fsync_path(partial)
    os.replace(partial, path)
    fsync_path(path.parent)


def fsync_path(path: Path) -> None:
    """Have the system write a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
