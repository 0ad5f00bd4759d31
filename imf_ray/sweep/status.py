"""Status of one run, or of the trials of a sweep, read from its folder.

No running process is asked, so this also works after the driver has ended.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from imf_ray.checkpoint_dir import VALIDATION_ERROR
from imf_ray.errors import UserError, error_source
from imf_ray.folders import TRIALS_DIR
from imf_ray.rollout.records import NUM_EPISODES_METRIC, describe_success
from imf_ray.schema.values import convert
from imf_ray.sweep.sweep_dir import SweepDir
from imf_ray.sweep.trial_record import TrialDir
from imf_ray.training.pace import Pace
from imf_ray.training.run_dir import RunDir
from imf_ray.training.run_records import merge_metrics

PENDING, RUNNING, STALLED, TRAINED = "pending", "running", "stalled", "trained"


@dataclass(frozen=True)
class RunStatus:
    """The status of one run."""

    name: str
    state: str
    """`PENDING`, `RUNNING`, `STALLED`, `TRAINED`, or the status in the record of an ended trial."""
    step: int
    """Number of updates at the last log line of training."""
    max_steps: int
    checkpoint: int | None
    """Training step of the newest checkpoint; None without any."""
    age_s: float | None
    """Seconds since the last line of the log; None if it is empty."""
    metrics: dict[str, Any]
    """The latest value of each metric."""
    error: str | None = None
    """Error of the run or of its last validation."""
    damaged_lines: dict[str, int] = field(default_factory=dict)
    """Number of damaged lines, which were skipped, of each log that has any."""

    @property
    def notes(self) -> list[str]:
        """Sentences about what the table does not show."""
        notes = [
            f"{count} damaged line(s) of {name} skipped"
            for name, count in self.damaged_lines.items()
        ]
        return notes if self.error is None else [self.error, *notes]


def read_status(run_dir: RunDir, now: float) -> RunStatus:
    """Read a run's status at the time `now`, in seconds since 1970.

    Raises:
        UserError: the run's configuration is damaged.
    """
    lines = run_dir.read_metrics()
    metrics: dict[str, Any] = functools.reduce(merge_metrics, lines, {"step": 0})
    pace = Pace()
    for line in lines:
        pace.add(line)
    train = run_dir.read_config().get("train")
    with error_source(str(run_dir.config_file)):
        stored = train.get("max_steps") if isinstance(train, dict) else None
        max_steps = convert("train.max_steps", int, stored)
    return RunStatus(
        name=run_dir.name,
        state=run_state(pace, now, trained=metrics["step"] >= max_steps),
        step=int(metrics["step"]),
        max_steps=max_steps,
        checkpoint=run_dir.newest_step(),
        age_s=None if pace.last_time is None else now - pace.last_time,
        metrics=metrics,
        error=metrics.get(VALIDATION_ERROR),
        damaged_lines=run_dir.count_damaged_lines(),
    )


def run_state(pace: Pace, now: float, trained: bool) -> str:
    """Return the state of a run without a record, at a time in seconds since 1970."""
    if pace.last_time is None:
        return PENDING
    if trained:
        return TRAINED
    return STALLED if pace.is_stalled(now) else RUNNING


def find_runs(folder: str | Path) -> list[TrialDir]:
    """Return the trials of a sweep, a single run, or the runs and trials in a folder of them.

    Raises:
        UserError: the folder is neither a sweep nor a run, and has none.
    """
    folder = Path(folder)
    candidates = [TrialDir(folder), *SweepDir(folder).trials()]
    if not any(candidate.exists for candidate in candidates):
        for path in sorted(folder.glob("*")):
            candidates += [TrialDir(path), *SweepDir(path).trials()]
    runs = [candidate for candidate in candidates if candidate.exists]
    if not runs:
        raise UserError(f"{folder} contains neither a run nor a sweep.")
    return runs


def read_all(folder: str | Path) -> list[RunStatus]:
    """Return the status of every run in a folder, after downloading it if it has a URL.

    Raises:
        UserError: see `find_runs`.
    """
    folder = Path(folder)
    SweepDir(folder).download_state()
    now, statuses = time.time(), []
    for run_dir in find_runs(folder):
        status, record = read_status(run_dir, now), run_dir.read_record(retry=False)
        status = dataclasses.replace(status, name=_name_in(folder, run_dir))
        if record is not None:
            error = record.error or status.error
            status = dataclasses.replace(status, state=record.status, error=error)
        statuses.append(status)
    return statuses


def _name_in(folder: Path, run_dir: RunDir) -> str:
    """Return a run's name, and in a folder of sweeps the sweep's name as well."""
    parts = run_dir.path.relative_to(folder).parts
    return "/".join(part for part in parts if part != TRIALS_DIR) or run_dir.name


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
            _metric_cell(run, "loss", "{:.4f}"),
            _metric_cell(run, "samples_per_s", "{:.0f}"),
            describe_success(run.metrics) or "",
            _metric_cell(run, NUM_EPISODES_METRIC, "{:.0f}"),
            _metric_cell(run, "action_error", "{:.4f}"),
            _metric_cell(run, "restarts", "{:.0f}"),
            "" if run.age_s is None else f"{format_duration(run.age_s)} ago",
        )
    return table


def _metric_cell(run: RunStatus, name: str, format_string: str) -> str:
    return format_string.format(run.metrics[name]) if name in run.metrics else ""


def format_duration(seconds: float) -> str:
    """Return a duration in its largest unit, such as `3 min`."""
    for unit, unit_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"
