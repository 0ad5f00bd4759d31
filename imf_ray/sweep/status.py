"""Progress of the trials of a sweep, or of one run, read from its folder alone.

The folder suffices whether or not its driver is still running.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from imf_ray.errors import UserError
from imf_ray.rollout.records import NUM_EPISODES_METRIC, describe_success
from imf_ray.sweep.sweep_dir import SweepDir
from imf_ray.sweep.trial_record import TrialDir
from imf_ray.training.status import RunStatus, read_status


def find_runs(folder: Path) -> list[TrialDir]:
    """Return the trials of a sweep, or a single run.

    Raises:
        UserError: the folder is neither a sweep nor a run.
    """
    candidates = [TrialDir(folder), *SweepDir(folder).trials()]
    runs = [candidate for candidate in candidates if candidate.exists]
    if not runs:
        raise UserError(f"{folder} holds neither a run nor a sweep.")
    return runs


def read_all(folder: Path) -> list[RunStatus]:
    """Return the status of every run in a folder, after downloading it if it has a URL.

    Raises:
        UserError: see `find_runs`.
    """
    SweepDir(folder).download_state()
    now, statuses = time.time(), []
    for run_dir in find_runs(folder):
        status, record = read_status(run_dir, now), run_dir.read_record(retry=False)
        if record is not None:
            error = record.error or status.error
            status = dataclasses.replace(status, state=record.status, error=error)
        statuses.append(status)
    return statuses


def status_table(runs: Sequence[RunStatus]) -> Table:
    """Build a table with one row per run."""
    table = Table(box=None)
    table.add_column("run", overflow="fold", min_width=20)
    columns = [
        "state",
        "step",
        "saved",
        "loss",
        "samples/s",
        "success",
        "n",
        "action error",
        "restarts",
        "last entry",
    ]
    for column in columns:
        table.add_column(column, no_wrap=True)
    for run in runs:
        table.add_row(
            run.name,
            run.state,
            f"{run.step}/{run.max_steps}",
            "" if run.checkpoint is None else str(run.checkpoint),
            _number(run, "loss", "{:.4f}"),
            _number(run, "samples_per_s", "{:.0f}"),
            describe_success(run.metrics) or "",
            _number(run, NUM_EPISODES_METRIC, "{:.0f}"),
            _number(run, "action_error", "{:.4f}"),
            _number(run, "restarts", "{:.0f}"),
            "" if run.age_s is None else f"{_duration(run.age_s)} ago",
        )
    return table


def _number(run: RunStatus, name: str, format_string: str) -> str:
    return format_string.format(run.metrics[name]) if name in run.metrics else ""


def _duration(seconds: float) -> str:
    for unit, unit_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"
