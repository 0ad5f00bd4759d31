"""The progress of a run, read from its folder alone."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from imf_ray.training.checkpoint import VALIDATION_ERROR
from imf_ray.training.run_dir import RunDir
from imf_ray.training.tracking import RESTARTS, merge_metrics

STALLED_AFTER_S, STALLED_AFTER_INTERVALS = 300.0, 3.0
"""A run is stalled after this many seconds without a line in its log, and this many times its
longest interval between two lines."""
PENDING, RUNNING, STALLED, TRAINED = "pending", "running", "stalled", "trained"


@dataclass(frozen=True)
class RunStatus:
    """The status of one run."""

    name: str
    state: str
    """`PENDING`, `RUNNING`, `STALLED` or `TRAINED`; the record's status for a trial that ended."""
    step: int
    max_steps: int
    checkpoint: int | None
    """Step of the newest checkpoint."""
    age_s: float | None
    """Seconds since the last line of metrics."""
    metrics: dict[str, Any]
    """The latest value of each metric."""
    error: str | None = None
    """Why the run, or its last validation, failed."""


def read_status(run_dir: RunDir, now: float) -> RunStatus:
    """Read a run's status at the time `now`, in seconds since the epoch."""
    lines = run_dir.read_metrics()
    metrics: dict[str, Any] = functools.reduce(merge_metrics, lines, {"step": 0})
    age_s = now - lines[-1]["time"] if lines else None
    max_steps = int(run_dir.read_config()["train"]["max_steps"])
    return RunStatus(
        name=run_dir.name,
        state=_state(lines, age_s, trained=metrics["step"] >= max_steps),
        step=int(metrics["step"]),
        max_steps=max_steps,
        checkpoint=run_dir.newest_step(),
        age_s=age_s,
        metrics=metrics,
        error=metrics.get(VALIDATION_ERROR),
    )


def _state(lines: Sequence[dict[str, Any]], age_s: float | None, trained: bool) -> str:
    if age_s is None:
        return PENDING
    if trained:
        return TRAINED
    intervals = (
        after["time"] - before["time"]
        for before, after in itertools.pairwise(lines)
        if RESTARTS not in after  # the run was down before such a line
    )
    longest = max(intervals, default=0.0)
    is_alive = age_s < max(STALLED_AFTER_S, STALLED_AFTER_INTERVALS * longest)
    return RUNNING if is_alive else STALLED
