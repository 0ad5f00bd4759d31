"""Atomic file writes, append-only line files and retries of failed I/O.

A file is either complete or absent, and so is a line of a line file. Files in the local copy of a
remote folder are uploaded as well.
"""

from __future__ import annotations

import errno
import functools
import io
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from imf_ray.errors import StorageError
from imf_ray.storage import is_connection_error, remote_path, storage_errors, upload

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_DPI = 120
"""Resolution of figures in dots per inch."""
SYNC_INTERVAL_S = 5.0
"""Minimum number of seconds between two uploads of a growing file."""
MAX_SYNC_TIME_FRACTION = 0.05
"""Maximum fraction of the time spent on uploads of a growing file."""
RETRY_DELAYS_S = (1.0, 10.0, 60.0, 300.0)
"""Seconds before each retry of failed I/O."""
MAX_LINE_BYTES = 2**20
"""Number of bytes at the end of a line file that are searched for an incomplete line."""
log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")


def retry_io(fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call `fn`, and retry while a disk is full or a network is down.

    Raises:
        StorageError, OSError: `fn` still fails after the last of `RETRY_DELAYS_S`. A permanent
            failure (a missing file or bucket, missing permissions) is raised at once.
    """
    for delay in RETRY_DELAYS_S:
        try:
            return fn(*args, **kwargs)
        except (OSError, StorageError) as error:
            if any(map(_is_permanent, (error, error.__cause__))):
                raise
            log.warning("Retrying in %.0f s: %s", delay, error)
            time.sleep(delay)
    return fn(*args, **kwargs)


def retrying(fn: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function or method so that its calls are retried by `retry_io`."""

    @functools.wraps(fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        return retry_io(fn, *args, **kwargs)

    return wrapper


def _is_permanent(error: BaseException | None) -> bool:
    """Return True if waiting does not help against an error."""
    if isinstance(error, FileNotFoundError):
        return not is_connection_error(error)
    return isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


class JsonlWriter:
    """Appends lines to a file that only one process writes at a time.

    An incomplete last line, left by a killed process or a full disk, is removed.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("a+b", buffering=0)
        end = self._file.seek(0, os.SEEK_END)
        start = self._file.seek(max(0, end - MAX_LINE_BYTES))
        tail = self._file.read()
        self._end = start + tail.rfind(b"\n") + 1
        self._is_remote = remote_path(path) is not None
        self._next_upload = time.monotonic() + SYNC_INTERVAL_S

    def append(self, line: str) -> None:
        """Append a line. Once this returns, the line is kept even if the process is killed.

        Raises:
            StorageError: the disk is full; the next `append` removes the incomplete line.
        """
        content = f"{line}\n".encode()
        with storage_errors(self._path, "written"):
            self._file.truncate(self._end)
            if self._file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._end += len(content)
        if self._is_remote and time.monotonic() >= self._next_upload:
            self._upload()

    def _upload(self) -> None:
        """Upload the file. A failure is only logged, because the local file contains all lines."""
        started_at = time.monotonic()
        try:
            upload(self._path)
        except StorageError as error:
            log.warning("The upload is postponed because it failed: %s", error)
        now = time.monotonic()
        pause = max(SYNC_INTERVAL_S, (now - started_at) / MAX_SYNC_TIME_FRACTION)
        self._next_upload = now + pause

    def close(self) -> None:
        """Close the file and upload it.

        Raises:
            StorageError: the file cannot be uploaded.
        """
        self._file.close()
        upload(self._path)


class RetryingJsonlWriter(JsonlWriter):
    """A `JsonlWriter` whose methods retry by `retry_io`."""

    @retrying
    def append(self, line: str) -> None:
        """See `JsonlWriter.append`."""
        super().append(line)

    @retrying
    def close(self) -> None:
        """See `JsonlWriter.close`."""
        super().close()


def append_line(path: Path, line: str) -> None:
    """Append one line to a file by a `JsonlWriter`. A missing file is created."""
    writer = JsonlWriter(path)
    try:
        writer.append(line)
    finally:
        writer.close()


def read_lines(path: Path) -> list[str]:
    """Return the complete lines of a file without line ends. A missing file has no lines."""
    if not path.is_file():
        return []
    *lines, _incomplete = path.read_bytes().split(b"\n")
    return [line.decode() for line in lines]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, sync it and rename it; parent folders are created.

    Raises:
        StorageError: the file cannot be written, and the previous one is unchanged. Or the new file
            was written locally but cannot be uploaded.
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
    """Write a file atomically, unless it already has this content.

    Resuming a run therefore needs no free disk space for unchanged files.
    """
    if path.is_file() and path.read_bytes() == content.encode():
        upload(path)  # an earlier upload may have failed
    else:
        write_atomically(path, content)


def write_figure(path: Path, figure: Figure) -> None:
    """Write a matplotlib figure as a PNG; see `write_atomically`."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=FIGURE_DPI)
    write_atomically(path, content.getvalue())


def atomic_rename(partial: Path, path: Path) -> None:
    """Sync a finished file or folder and rename it to its final name."""
    fsync_path(partial)
    os.replace(partial, path)
    fsync_path(path.parent)


def fsync_path(path: Path) -> None:
    """Flush a file, or the list of files in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
