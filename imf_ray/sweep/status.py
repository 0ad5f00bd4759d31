"""How far the trials of a sweep are, from its folder alone: also if its driver is gone."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from imf_ray.errors import UserError
from imf_ray.rollout.records import NUM_EPISODES_METRIC, describe_success
from imf_ray.sweep.runner import TRIALS_DIR
from imf_ray.sweep.trial import read_trial
from imf_ray.training.status import RunStatus, is_run, read_status


def find_runs(folder: Path) -> list[Path]:
    """The trials of a sweep, or a single run.

    Raises:
        UserError: the folder is neither.
    """
    if is_run(folder):
        return [folder]
    runs = sorted(filter(is_run, (folder / TRIALS_DIR).glob("*")))
    if not runs:
        raise UserError(f"{folder} holds neither a run nor a sweep.")
    return runs


def read_all(folder: Path) -> list[RunStatus]:
    """The status of every run of a folder.

    Raises:
        UserError: see `find_runs`.
    """
    now, found = time.time(), []
    for run_dir in find_runs(folder):
        status, record = read_status(run_dir, now), read_trial(run_dir)
        if record is not None:
            error = record.error or status.error
            status = dataclasses.replace(status, state=record.status, error=error)
        found.append(status)
    return found


def status_table(runs: Sequence[RunStatus]) -> Table:
    """A line for each run."""
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
        "last line",
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


def _number(run: RunStatus, name: str, text: str) -> str:
    return text.format(run.metrics[name]) if name in run.metrics else ""


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"
