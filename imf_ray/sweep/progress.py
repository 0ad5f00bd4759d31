"""Progress of a sweep: bars on a terminal; elsewhere, as in a job's log, a table now and then."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from imf_ray.errors import UserError
from imf_ray.rollout.records import describe_success
from imf_ray.sweep.prepare import Sweep
from imf_ray.sweep.status import PENDING, RUNNING, STALLED, format_duration, run_state
from imf_ray.sweep.trial_record import FAILED
from imf_ray.tables import Column, FittedTable
from imf_ray.training.pace import Pace
from imf_ray.training.progress import RunProgress
from imf_ray.training.run_dir import RunDir
from imf_ray.training.run_records import RESTARTS, VALIDATED

TABLE_INTERVAL_S, MAX_TABLE_INTERVAL_S, INTERVAL_FRACTION = 60.0, 900.0, 0.1
"""Interval between two tables in seconds: a tenth of the time so far, from 1 to 15 minutes."""
TABLE_WIDTH, MAX_ROWS = 100, 24
"""Width of a table in characters, and maximum number of its rows."""


@dataclass(frozen=True)
class TrialProgress:
    """A row of the table."""

    name: str
    state: str
    """A state of `sweep/status.py`, or the status in the record of an ended trial."""
    max_steps: int
    metrics: Mapping[str, Any]
    """The latest value of each metric."""
    time_left_s: float | None = None
    """Estimated seconds until the last training step."""


class SweepProgress(RunProgress):
    """Shows the progress of a sweep while the `with` block runs its trials.

    Where there is no terminal, it prints a table of the trials at growing intervals. Between the
    tables, it prints a line for each validation and each restart.
    """

    def __init__(self, sweep: Sweep, console: Console) -> None:
        super().__init__(sweep.steps, console)
        self._sweep = sweep
        self._paces = {run_dir: Pace() for run_dir in sweep.steps}
        self._ended: dict[str, str] = {}
        self._started_at = time.monotonic()
        self._next_table_at = self._started_at + TABLE_INTERVAL_S

    def _show(self, run_dir: RunDir, line: Mapping[str, Any]) -> None:
        self._paces[run_dir].add(line)
        if self._console.is_terminal or VALIDATED in line or line.get(RESTARTS, 0):
            super()._show(run_dir, line)

    def _poll(self) -> None:
        super()._poll()
        now = time.monotonic()
        if self._console.is_terminal or now < self._next_table_at:
            return
        elapsed_s = now - self._started_at
        interval_s = max(TABLE_INTERVAL_S, INTERVAL_FRACTION * elapsed_s)
        self._next_table_at = now + min(interval_s, MAX_TABLE_INTERVAL_S)
        try:
            trials = list(self._read_trials())
        except UserError:  # a brief network failure; the next table shows it
            return
        self._console.print(progress_table(trials, elapsed_s), width=TABLE_WIDTH)

    def _read_trials(self) -> Iterator[TrialProgress]:
        """Generate the state of each trial.

        Raises:
            UserError: a record cannot be read.
        """
        for name, trial_dir in self._sweep.trial_dirs.items():
            record = None if name in self._ended else trial_dir.read_record(retry=False)
            if record is not None:
                self._ended[name] = record.status
            pace, max_steps = self._paces[trial_dir], self._runs[trial_dir]
            metrics = self._latest[trial_dir]
            trained = metrics.get("step", 0) >= max_steps
            state = self._ended.get(name) or run_state(pace, time.time(), trained)
            left_s = pace.time_left_s(max_steps) if state == RUNNING else None
            yield TrialProgress(name, state, max_steps, metrics, left_s)


def progress_table(trials: Sequence[TrialProgress], elapsed_s: float) -> FittedTable:
    """Return a table of trials, headed by the number of trials in each state.

    If there are more than `MAX_ROWS` trials, it lists those that need attention first: stalled,
    failed and running ones, then others.
    """
    counts = Counter(trial.state for trial in trials)
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    shown = trials
    if len(trials) > MAX_ROWS:
        order = {STALLED: 0, FAILED: 1, RUNNING: 2, PENDING: 4}
        shown = sorted(trials, key=lambda trial: order.get(trial.state, 3))[:MAX_ROWS]
        summary += f"; {MAX_ROWS} of {len(trials)} are listed"
    speeds = [trial.metrics.get("samples_per_s") for trial in shown]
    return FittedTable(
        [
            Column("trial", [trial.name for trial in shown], is_name=True),
            Column("state", [trial.state for trial in shown]),
            Column("step", [f"{t.metrics.get('step', 0):.0f}/{t.max_steps}" for t in shown]),
            Column("success", [describe_success(trial.metrics) or "" for trial in shown]),
            Column("samples/s", ["" if speed is None else f"{speed:.0f}" for speed in speeds]),
            Column(
                "time left",
                ["" if t.time_left_s is None else format_duration(t.time_left_s) for t in shown],
            ),
        ],
        title=f"Trials after {format_duration(elapsed_s)}: {summary}",
        fold=False,
        legend=False,
    )
