"""Terminal output: the standard streams, the console and progress bars.

All output of the commands goes through `STDOUT`, `STDERR` or `console`, so that a terminal that is
gone ends no run.
"""

from __future__ import annotations

import functools
import io
import os
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO, cast

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from imf_ray.labels import short_labels
from imf_ray.storage import DISK_FULL_ERRNOS

NON_TTY_WIDTH = 110
"""Maximum width of tables and messages in characters, if stdout is not a terminal and the
environment variable COLUMNS is not set."""
BAR_WIDTH, TIME_WIDTH = 20, 8
"""Widths of a progress bar and of the remaining time in characters."""
MIN_BAR_LABEL_WIDTH, MAX_BAR_LABEL_WIDTH = 16, 40
"""Limits of the width of a bar's name, which otherwise takes a quarter of the terminal."""
TEXT_INDENT = 2
"""Number of spaces before a text beneath its bar."""
REFRESHES_PER_S = 4


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


class _FittedProgress(Progress):
    """Progress bars that fit the terminal."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield _Bars(self.tasks)


class _Bars:
    """A line per task: its name, which may be shortened, a bar, counts, and a text.

    A text that does not fit the line follows beneath. If the terminal has too few lines, finished
    tasks are left out first, then the last ones. A line counts them.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = tasks

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        tasks, width = self._tasks, options.max_width
        limit = max(MIN_BAR_LABEL_WIDTH, min(width // 4, MAX_BAR_LABEL_WIDTH))
        labels = _bar_labels(tuple(task.description for task in tasks), limit)
        label_width = max(map(cell_len, labels.values()), default=0)
        bar, count, time_left = BarColumn(BAR_WIDTH), MofNCompleteColumn(), TimeRemainingColumn()
        count_width = max((2 * len(f"{task.total:.0f}") + 1 for task in tasks), default=0)
        widths = (label_width, BAR_WIDTH, count_width, TIME_WIDTH)
        text_width = max(0, width - sum(widths) - len(widths))
        shown = self._fitting(console, width, text_width)
        for index in shown:
            task = tasks[index]
            label, text = Text(labels[task.description]), Text(task.fields["text"])
            is_beneath = cell_len(text.plain) > text_width
            line = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
            for column_width in widths:
                line.add_column(width=column_width, no_wrap=True)
            line.add_column()
            line.add_row(label, bar(task), count(task), time_left(task), "" if is_beneath else text)
            yield line
            if is_beneath:
                yield Padding(text, (0, 0, 0, TEXT_INDENT))
        left_out = [task for index, task in enumerate(tasks) if index not in shown]
        if left_out:
            num_finished = sum(task.finished for task in left_out)
            yield Text(f"{len(left_out)} more, {num_finished} of them finished")

    def _fitting(self, console: Console, width: int, text_width: int) -> list[int]:
        """Return the indices of the tasks that fit the height of the terminal, in their order."""
        shown: list[int] = []
        used = 1  # the last line of the terminal is for the cursor
        for index in sorted(range(len(self._tasks)), key=lambda index: self._tasks[index].finished):
            text = Text(self._tasks[index].fields["text"])
            is_beneath = cell_len(text.plain) > text_width
            used += 1 + (len(text.wrap(console, width - TEXT_INDENT)) if is_beneath else 0)
            is_last = len(shown) == len(self._tasks) - 1
            if shown and used > console.height - (not is_last):  # a line counts the others
                break
            shown.append(index)
        return sorted(shown)


@functools.lru_cache(maxsize=4)
def _bar_labels(names: tuple[str, ...], width: int) -> dict[str, str]:
    return short_labels(names, width)


class ProgressBars:
    """Progress bars with a name, a count, a status text and the remaining time.

    On a terminal, bars are drawn inside the `with` block. Elsewhere, `update` prints plain lines.

    Args:
        lines: approximate number of plain lines per bar; None prints a line for every update.
    """

    def __init__(self, console: Console = console, lines: int | None = None) -> None:
        self._console, self._lines = console, lines
        self._progress = _FittedProgress(
            console=console, disable=not console.is_terminal, refresh_per_second=REFRESHES_PER_S
        )
        self._bars: dict[str, TaskID] = {}
        self._printed: dict[str, int] = {}

    def update(self, name: str, completed: int, total: int, text: str = "") -> None:
        """Show that `completed` of `total` steps of the bar `name` are done."""
        if not self._console.is_terminal:
            interval = 1 if self._lines is None else max(1, total // self._lines)
            is_new = self._lines is None or self._printed.get(name) != completed
            if is_new and (completed % interval == 0 or completed == total):
                self._printed[name] = completed
                line = f"{name}: {completed}/{total}" + (f", {text}" if text else "")
                self._console.print(line, soft_wrap=True)
            return
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=total, text=text)
        self._progress.update(self._bars[name], completed=completed, text=text)

    def start(self, name: str, total: int) -> None:
        """Draw the bar `name` before its first step; print nothing where there is no terminal."""
        if self._console.is_terminal:
            self.update(name, 0, total)

    def __enter__(self) -> ProgressBars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
