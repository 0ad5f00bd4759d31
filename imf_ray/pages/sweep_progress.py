"""Progress of a sweep: bars on a terminal; elsewhere, as in a job's log, a table now and then."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console

from imf_ray.errors import UserError
from imf_ray.pages.terminal_view import TerminalView
from imf_ray.pages.terminal_watch import open_reader
from imf_ray.storage import display_path
from imf_ray.sweep.sweep_dir import SweepDir
from imf_ray.training.progress import RunProgress
from imf_ray.training.run_dir import RunDir
from imf_ray.training.run_records import RESTARTS, VALIDATED

TABLE_INTERVAL_S, MAX_TABLE_INTERVAL_S, INTERVAL_FRACTION = 60.0, 900.0, 0.1
"""Interval between two tables in seconds: a tenth of the time so far, from 1 to 15 minutes."""


class SweepProgress(RunProgress):
    """Shows the progress of a sweep while the `with` block runs its trials.

    Where there is no terminal, it prints the table of `imf-ray status` at growing intervals.
    Between the tables, it prints a line for each validation and each restart.

    Args:
        steps: total number of updates of each trial, by run folder.
    """

    def __init__(self, sweep_dir: SweepDir, steps: Mapping[RunDir, int], console: Console) -> None:
        super().__init__(steps, console)
        self._reader = open_reader(display_path(sweep_dir.path))
        self._started_at = time.monotonic()
        self._next_table_at = self._started_at + TABLE_INTERVAL_S

    def __enter__(self) -> SweepProgress:
        self._read = self._reader.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        self._reader.__exit__(None, None, None)

    def _show(self, run_dir: RunDir, line: Mapping[str, Any]) -> None:
        if self._console.is_terminal or VALIDATED in line or line.get(RESTARTS, 0):
            super()._show(run_dir, line)

    def _poll(self) -> None:
        super()._poll()
        now = time.monotonic()
        if self._console.is_terminal or now < self._next_table_at:
            return
        interval_s = max(TABLE_INTERVAL_S, INTERVAL_FRACTION * (now - self._started_at))
        self._next_table_at = now + min(interval_s, MAX_TABLE_INTERVAL_S)
        try:
            view = TerminalView(self._read(), fit_height=True)
        except (UserError, OSError):  # a brief network failure; the next table shows it
            return
        self._console.print(view, crop=False)
