"""Shows what a command is doing: progress bars, and activities of unknown length.

On a terminal something moves at least every second. Elsewhere, as in a pipe or the log of a job,
there is a line at least every `MAX_SILENCE_S` seconds.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from imf_ray.errors import abridge
from imf_ray.labels import short_labels
from imf_ray.terminal import console as stdout_console

BAR_WIDTH, TIME_WIDTH = 20, 8
"""Widths of a progress bar and of its time in characters."""
MIN_BAR_LABEL_WIDTH, MAX_BAR_LABEL_WIDTH = 16, 40
"""Limits of the width of a bar's name, which otherwise takes a quarter of the terminal."""
TEXT_INDENT = 2
"""Number of spaces before a text beneath its bar."""
REFRESHES_PER_S = 4
LOADING = "Loading PyTorch and Ray"
"""The activity of a command that imports them."""
MAX_LISTED_BARS = 4
"""Maximum number of bars in a line where there is no terminal."""
MAX_SILENCE_S = 25.0
"""Maximum time between two lines in seconds where there is no terminal."""


@contextmanager
def activity(text: str, console: Console = stdout_console) -> Iterator[None]:
    """Show that the `with` block is doing something, and for how long.

    A terminal shows a spinner, which disappears at the end. Elsewhere `text` is printed, and again
    with the elapsed time every `MAX_SILENCE_S` seconds.
    """
    if console.is_terminal:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            progress.add_task(text, total=None)
            yield
        return
    console.print(f"{text} ...", soft_wrap=True)
    started_at = time.monotonic()

    def print_again() -> None:
        elapsed_s = time.monotonic() - started_at
        console.print(f"{text} ... {elapsed_s:.0f} s", soft_wrap=True)

    with _SilenceTimer(print_again):
        yield


class _SilenceTimer:
    """Calls a function whenever there was no output for `MAX_SILENCE_S` seconds."""

    def __init__(self, print_line: Callable[[], None]) -> None:
        self._print_line = print_line
        self._stop = threading.Event()
        self._last_output_at = time.monotonic()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def reset(self) -> None:
        """Note that there was output just now."""
        self._last_output_at = time.monotonic()

    def __enter__(self) -> _SilenceTimer:
        self.reset()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stop.wait(self._last_output_at + MAX_SILENCE_S - time.monotonic()):
            if time.monotonic() - self._last_output_at >= MAX_SILENCE_S:
                self.reset()
                self._print_line()


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
        bar, count = BarColumn(BAR_WIDTH), MofNCompleteColumn()
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
            line.add_row(label, bar(task), count(task), _time(task), "" if is_beneath else text)
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


def _time(task: Task) -> Text:
    """Return the remaining time of a task or, while it is unknown, the elapsed time."""
    if task.finished:
        seconds, style = task.finished_time, "progress.elapsed"
    elif task.time_remaining is not None and task.completed:
        seconds, style = task.time_remaining, "progress.remaining"
    else:
        seconds, style = task.elapsed, "progress.elapsed"
    return Text(str(timedelta(seconds=int(seconds or 0))), style=style)


@functools.lru_cache(maxsize=4)
def _bar_labels(names: tuple[str, ...], width: int) -> dict[str, str]:
    return short_labels(names, width)


class ProgressBars:
    """Progress bars with a name, a count, a status text and the remaining time.

    On a terminal, bars are drawn inside the `with` block. Before the remaining time is known, they
    show the elapsed time. Elsewhere, `update` prints plain lines, and the newest state is printed
    again after `MAX_SILENCE_S` seconds without a line.

    Args:
        lines: approximate number of plain lines per bar; None prints a line for every update.
    """

    def __init__(self, console: Console = stdout_console, lines: int | None = None) -> None:
        self._console, self._lines = console, lines
        self._progress = _FittedProgress(
            console=console, disable=not console.is_terminal, refresh_per_second=REFRESHES_PER_S
        )
        self._bars: dict[str, TaskID] = {}
        self._printed: dict[str, int] = {}
        self._newest: dict[str, str] = {}  # plain lines; empty for inactive bars
        self._started_at = 0.0
        self._silence_timer = _SilenceTimer(self._print_newest)

    def update(self, name: str, completed: int, total: int, text: str = "") -> None:
        """Show that `completed` of `total` steps of the bar `name` are done."""
        self.move(name, completed, total, text, is_active=completed < total)
        if self._console.is_terminal:
            return
        interval = 1 if self._lines is None else max(1, total // self._lines)
        is_new = self._lines is None or self._printed.get(name) != completed
        if is_new and (completed % interval == 0 or completed == total):
            self._printed[name] = completed
            self._silence_timer.reset()
            self._console.print(_line(name, completed, total, text), soft_wrap=True)

    def move(
        self, name: str, completed: int, total: int, text: str = "", is_active: bool = True
    ) -> None:
        """Move a bar without a plain line of its own, for progress that is not worth a line.

        Args:
            is_active: where there is no terminal, only active bars are printed after a silence.
        """
        if not self._console.is_terminal:
            line = _line(name, completed, total, text) if is_active else ""
            self._newest = {**self._newest, name: line}  # the timer's thread reads it
            return
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=total, text=text)
        self._progress.update(self._bars[name], completed=completed, text=text)

    def start(self, name: str, total: int, text: str = "") -> None:
        """Draw the bar `name` before its first step; print nothing where there is no terminal."""
        self.move(name, 0, total, text)

    def __enter__(self) -> ProgressBars:
        self._started_at = time.monotonic()
        if self._console.is_terminal:
            self._progress.start()
        else:
            self._silence_timer.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._progress.stop()
        else:
            self._silence_timer.__exit__()

    def _print_newest(self) -> None:
        elapsed_s = time.monotonic() - self._started_at
        lines = abridge(list(filter(None, self._newest.values())), MAX_LISTED_BARS)
        self._console.print(f"{lines or 'Working'} ({elapsed_s:.0f} s so far)", soft_wrap=True)


def _line(name: str, completed: int, total: int, text: str) -> str:
    """Return the plain line of a bar."""
    return f"{name}: {completed}/{total}" + (f", {text}" if text else "")
