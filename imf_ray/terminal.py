"""Terminal output: the console and progress bars."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

NON_TTY_WIDTH = 110
"""Maximum width of tables and messages in characters, if stdout is not a terminal."""
BAR_WIDTH = 20
"""Width of a progress bar in characters."""
console = Console(markup=False, width=None if sys.stdout.isatty() else NON_TTY_WIDTH)


class ProgressBars:
    """Progress bars with a name, a count, a status text and the remaining time.

    On a terminal, bars are drawn inside the `with` block. Elsewhere, `update` prints plain lines.

    Args:
        lines: approximate number of plain lines per bar; None prints a line for every update.
    """

    def __init__(self, console: Console = console, lines: int | None = None) -> None:
        self._console, self._lines = console, lines
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=BAR_WIDTH),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TimeRemainingColumn(),
        ]
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
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
