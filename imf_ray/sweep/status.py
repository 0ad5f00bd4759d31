"""How far runs are, from their folders alone: also of a sweep whose driver is gone."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich import box
from rich.table import Table

from imf_ray.agents.pretrained import CONFIG
from imf_ray.errors import UserError
from imf_ray.sweep.runner import TRIALS_DIR
from imf_ray.sweep.trial import TRIAL_FILE
from imf_ray.training.checkpoint import PATTERN, step_of
from imf_ray.training.tracking import METRICS_FILE

SILENT_S = 300.0
"""A run that has said nothing for so long is not called running."""
WAITING, RUNNING, SILENT, TRAINED = "waiting", "running", "silent", "trained"


@dataclass(frozen=True)
class RunStatus:
    """One run."""

    name: str
    state: str
    """`WAITING`, `RUNNING`, `SILENT`, `TRAINED`, or of a trial's record: finished, failed."""
    step: int
    max_steps: int
    checkpoint: int | None
    """Step of the newest checkpoint."""
    age_s: float | None
    """Since its last line of metrics."""
    metrics: dict[str, Any]
    """The latest value of each."""


def find_runs(folder: Path) -> list[Path]:
    """The trials of a sweep, or a single run.

    Raises:
        UserError: the folder is neither.
    """
    if (folder / CONFIG).is_file():
        return [folder]
    runs = sorted(path.parent for path in (folder / TRIALS_DIR).glob(f"*/{CONFIG}"))
    if not runs:
        raise UserError(
            f"{folder} holds neither a run ({CONFIG}) nor a sweep ({TRIALS_DIR}/*/{CONFIG})."
        )
    return runs


def read_status(run_dir: Path, now: float) -> RunStatus:
    """What a run's folder says at the time `now`, in seconds since the epoch."""
    log, metrics = run_dir / METRICS_FILE, {"step": 0}
    lines = log.read_text().splitlines(keepends=True) if log.is_file() else []
    for line in lines:
        if line.endswith("\n"):  # the last one may be half written
            metrics |= json.loads(line)
    age = now - log.stat().st_mtime if lines else None
    max_steps = int(OmegaConf.load(run_dir / CONFIG).train.max_steps)
    checkpoints = [step_of(path) for path in run_dir.glob(PATTERN)]
    record = run_dir / TRIAL_FILE
    if record.is_file():
        state = json.loads(record.read_text())["status"]
    elif age is None:
        state = WAITING
    elif metrics["step"] >= max_steps:
        state = TRAINED
    else:
        state = RUNNING if age < SILENT_S else SILENT
    return RunStatus(
        name=run_dir.name,
        state=state,
        step=int(metrics["step"]),
        max_steps=max_steps,
        checkpoint=max(checkpoints, default=None),
        age_s=age,
        metrics=metrics,
    )


def status_table(runs: Sequence[RunStatus]) -> Table:
    """A line for each run."""
    table = Table(box=box.SIMPLE)
    table.add_column("run", overflow="fold", min_width=24)
    columns = ["state", "step", "saved", "loss", "samples/s", "success", "error", "last line"]
    for column in columns:
        table.add_column(column, no_wrap=True)
    for run in runs:
        success = ""
        if "rollout/success_rate" in run.metrics:
            low, high = (run.metrics[f"rollout/success_{end}"] for end in ("low", "high"))
            success = f"{run.metrics['rollout/success_rate']:.2f} [{low:.2f}, {high:.2f}]"
        table.add_row(
            run.name,
            run.state,
            f"{run.step}/{run.max_steps}",
            "" if run.checkpoint is None else str(run.checkpoint),
            _number(run, "loss", "{:.4f}"),
            _number(run, "samples_per_s", "{:.0f}"),
            success,
            _number(run, "action_error", "{:.4f}"),
            "" if run.age_s is None else f"{_duration(run.age_s)} ago",
        )
    return table


def read_all(folder: Path) -> list[RunStatus]:
    """The status of every run of a folder.

    Raises:
        UserError: see `find_runs`.
    """
    now = time.time()
    return [read_status(run_dir, now) for run_dir in find_runs(folder)]


def _number(run: RunStatus, name: str, text: str) -> str:
    return text.format(run.metrics[name]) if name in run.metrics else ""


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"
