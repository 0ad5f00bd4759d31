"""Terminal output: the standard streams and the console.

All output of the commands goes through `STDOUT`, `STDERR` or `console`, so that a terminal that is
gone ends no run.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Callable
from typing import TextIO, cast

from rich.console import Console

from imf_ray.storage import DISK_FULL_ERRNOS

NON_TTY_WIDTH = 110
"""Maximum width of tables and messages in characters, if stdout is not a terminal and the
environment variable COLUMNS is not set."""


class StandardStream(io.TextIOBase):
    """stdout or stderr without errors: text that cannot be written is dropped.

    If nobody can receive text, because the terminal is gone or a pipe is closed early (`| head`),
    all further text is dropped as well. A file can be written again when its full disk has space;
    `failure` returns the error until then. Characters that the stream's encoding lacks are written
    as backslash escapes.

    Args:
        name: "stdout" or "stderr". `sys` is asked for the stream at each call, as it may change.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._failure: OSError | None = None

    @property
    def _stream(self) -> TextIO | None:
        """The current stream; None if the process has none."""
        stream = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream)  # rich's bars replace the stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's encoding."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Return True if the stream is a terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # the stream is closed
            return False

    def fileno(self) -> int:
        """Return the stream's file descriptor.

        Raises:
            OSError: it has none.
        """
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        printable = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        if self._attempt(lambda stream: _write_all(stream, printable)) and text:
            self._failure = None
        return len(text)

    def flush(self) -> None:
        """Write what is buffered, or drop it."""
        self._attempt(lambda stream: stream.flush())

    def failure(self) -> OSError | None:
        """Write what is buffered; return the error if a file did not take the newest text."""
        self.flush()
        if self._failure is not None:
            self._discard()
        return self._failure

    def _attempt(self, operation: Callable[[TextIO], object]) -> bool:
        """Return False if an operation on the stream fails on a full disk."""
        try:
            if self._stream is not None:
                operation(self._stream)
        except ValueError:  # the stream is closed
            pass
        except OSError as error:
            if error.errno in DISK_FULL_ERRNOS or self._is_file():  # a disk may recover
                self._failure = error
                return False
            self._discard()
        return True

    def _is_file(self) -> bool:
        return stat.S_ISREG(os.fstat(self.fileno()).st_mode)

    def _discard(self) -> None:
        """Drop all further text. Otherwise Python would fail again when it exits."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())


def _write_all(stream: TextIO, text: str) -> None:
    """Write all of a text. An unbuffered stream (PYTHONUNBUFFERED) may write only its start."""
    binary = getattr(stream, "buffer", None)
    if not isinstance(binary, io.RawIOBase):
        stream.write(text)
        return
    content = memoryview(text.encode(stream.encoding))
    while content:
        content = content[binary.write(content) :]


_stdout = StandardStream("stdout")
STDOUT = cast(TextIO, _stdout)
STDERR = cast(TextIO, StandardStream("stderr"))


def _plain_width() -> int | None:
    """Return the width of output that no terminal shows; None on a terminal, which has its own."""
    columns = os.environ.get("COLUMNS", "")
    if STDOUT.isatty() or columns.isdecimal():
        return None  # Rich uses COLUMNS or the terminal's width
    return NON_TTY_WIDTH


# Text is printed as it is: no markup and no emoji, so that names and commands can be copied.
console = Console(file=STDOUT, markup=False, emoji=False, width=_plain_width())


def output_failure() -> OSError | None:
    """Return the error if the newest text of `STDOUT` was lost; see `StandardStream.failure`."""
    return _stdout.failure()


def open_missing_streams() -> None:
    """Open the null device for each standard stream that the caller has closed.

    Otherwise the next opened file would get the number of the stream, and a program started by this
    process would write its output into that file. Ray needs `sys.stderr` to start.
    """
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))
