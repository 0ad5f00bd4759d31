"""Atomic file writes, append-only files of JSON lines, and retries of failed I/O.

A file is either complete or absent, and so is a line of a line file. Files in the local copy of a
remote folder are uploaded as well.

Files may still be damaged, for example by a loss of power. Readers skip an invalid line, name it
once and count it. A JSON file that is damaged is an error that names the file and the way out.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import io
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar

from imf_ray.errors import StorageError, UserError
from imf_ray.storage import (
    PERMANENT_ERRNOS,
    AnyPath,
    is_connection_error,
    remote_path,
    storage_errors,
    upload,
)

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
BLOCK_BYTES = 2**16
"""Number of bytes at the end of a line file that are read at a time to find an incomplete line."""
INVALID_JSON = (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError)
"""Errors that JSON text of another structure than expected may raise."""
_JSON_DECODER = json.JSONDecoder()
log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


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
    return isinstance(error, OSError) and error.errno in PERMANENT_ERRNOS


class JsonlWriter:
    """Appends lines to a file.

    An incomplete last line, left by a killed process or a full disk, is removed. Several writers
    may append to one file: each locks it while it writes a line.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("a+b", buffering=0)
        self._is_remote = remote_path(path) is not None
        self._next_upload = time.monotonic() + SYNC_INTERVAL_S

    def append(self, line: str) -> None:
        """Append a line. Once this returns, the line is kept even if the process is killed.

        Raises:
            StorageError: the disk is full; the next `append` removes the incomplete line.
        """
        content = f"{line}\n".encode()
        with storage_errors(self._path, "written"):
            with suppress(OSError):  # some file systems have no locks
                fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                self._remove_incomplete_line()
                if self._file.write(content) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                with suppress(OSError):
                    fcntl.flock(self._file, fcntl.LOCK_UN)
        if self._is_remote and time.monotonic() >= self._next_upload:
            self._upload()

    def _remove_incomplete_line(self) -> None:
        """Truncate the file after its last line break."""
        end = start = self._file.seek(0, os.SEEK_END)
        while start > 0:
            size = 1 if start == end else min(BLOCK_BYTES, start)
            start = self._file.seek(start - size)
            last_break = self._file.read(size).rfind(b"\n")
            if last_break >= 0:
                start += last_break + 1
                break
        if start < end:
            self._file.truncate(start)
            log.warning("Removed an incomplete line at the end of %s.", self._path)

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
    """Append one line to a file with a `JsonlWriter`. A missing file is created."""
    writer = JsonlWriter(path)
    try:
        writer.append(line)
    finally:
        writer.close()


class JsonLines(NamedTuple, Generic[T]):
    """The content of a file of JSON lines."""

    rows: list[T]
    num_invalid: int
    """Number of invalid lines, which were skipped."""
    end: int
    """Byte offset of the end of the last complete line."""


def read_json_lines(
    path: Path,
    parse: Callable[[Any], T],
    offset: int = 0,
    select: Callable[[Sequence[bytes]], Collection[int]] | None = None,
) -> JsonLines[T]:
    """Read the complete lines of a file. A missing file has no lines.

    An invalid line is skipped, and named in one warning per process. A last line without a line
    break is left out, because it may be incomplete.

    Args:
        parse: converts the JSON value of a line; raises one of `INVALID_JSON` if it is invalid.
        offset: byte offset of the line to start with.
        select: returns the indices of the lines to parse, given all lines; None parses all.
    """
    lines: JsonLines[T] = JsonLines([], 0, offset)
    if not path.is_file():
        return lines
    with path.open("rb") as file:
        file.seek(offset)
        *texts, _incomplete = file.read().split(b"\n")
    rows, num_invalid, end = lines
    selected = range(len(texts)) if select is None else select(texts)
    for index, text in enumerate(texts):
        try:
            if index in selected:
                rows.append(parse(_decode_line(text)))
        except INVALID_JSON as error:
            num_invalid += 1
            _warn_invalid_line(path, end, f"{type(error).__name__}: {error}")
        end += len(text) + 1
    return JsonLines(rows, num_invalid, end)


def _decode_line(text: bytes) -> Any:
    """Return the JSON value of a line, in little more than half of the time of `json.loads`.

    Raises:
        ValueError: the line is not JSON.
    """
    line = text.decode().strip()
    value, end = _JSON_DECODER.raw_decode(line)
    if end != len(line):
        raise ValueError(f"there is more text after the value, from column {end + 1} on")
    return value


@functools.cache
def _warn_invalid_line(path: Path, offset: int, reason: str) -> None:
    with path.open("rb") as file:
        number = file.read(offset).count(b"\n") + 1
    log.warning("Skipped line %d of %s, because it is damaged (%s).", number, path, reason)


def parse_json(text: str | bytes, parse: Callable[[Any], T], path: AnyPath, way_out: str) -> T:
    """Convert the content of a JSON file.

    Args:
        parse: converts the JSON value; raises one of `INVALID_JSON` if it is invalid.
        path: the file, for the message.
        way_out: what the user can do, as sentences, for the message.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return parse(json.loads(text))
    except INVALID_JSON as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}). {way_out}"
        ) from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, sync it and rename it; parent folders are created.

    Raises:
        StorageError: the file cannot be written, and the previous one is unchanged. Or the new file
            was written locally but cannot be uploaded.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
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
