"""Writing files so that they, or their lines, are complete or absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

LONGEST_LINE = 2**20
"""Bytes from the end of a file in which a line that was cut off is looked for."""


class LineFile:
    """A file of lines that one process at a time adds to, as long as it may live.

    What an earlier process left of a line, as it died or the disk was full, is dropped.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("a+b", buffering=0)
        end = self._file.seek(0, os.SEEK_END)
        start = self._file.seek(max(0, end - LONGEST_LINE))
        tail = self._file.read()
        self._file.truncate(start + tail.rfind(b"\n") + 1)

    def add(self, line: str) -> None:
        """Write a line, which is then in the file whenever the process dies.

        Raises:
            OSError: it does not fit on the disk.
        """
        content = f"{line}\n".encode()
        if self._file.write(content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def add_line(path: Path, line: str) -> None:
    """Add one line to a file, which is made if need be; see `LineFile`."""
    file = LineFile(path)
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
    """Write a file under a temporary name, sync it, and rename it into place; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        move_into_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def move_into_place(partial: Path, path: Path) -> None:
    """Sync a finished file or folder and rename it to its final name."""
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Have the system write a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
