"""How far a run is, from its folder alone."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from imf_ray.agents.pretrained import CONFIG_FILE
from imf_ray.training.checkpoint import VALIDATION_ERROR, newest_step
from imf_ray.training.tracking import METRICS_FILE, RESTARTS, merge_metrics, read_metrics

STALLED_AFTER_S, STALLED_AFTER_INTERVALS = 300.0, 3.0
"""A run that has said nothing for so long, and so many times as long as it ever took for a line, is
not called running."""
PENDING, RUNNING, STALLED, TRAINED = "waiting", "running", "silent", "trained"


@dataclass(frozen=True)
class RunStatus:
    """One run."""

    name: str
    state: str
    """`PENDING`, `RUNNING`, `STALLED` or `TRAINED`; of a trial that has ended, its record's."""
    step: int
    max_steps: int
    checkpoint: int | None
    """Its `newest_step`."""
    age_s: float | None
    """Since its last line of metrics."""
    metrics: dict[str, Any]
    """The latest value of each."""
    error: str | None = None
    """Why it failed, or its last validation did."""


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return (folder / CONFIG_FILE).is_file()


def read_status(run_dir: Path, now: float) -> RunStatus:
    """What a run's folder says at the time `now`, in seconds since the epoch."""
    lines = read_metrics(run_dir / METRICS_FILE)
    metrics: dict[str, Any] = functools.reduce(merge_metrics, lines, {"step": 0})
    age = now - lines[-1]["time"] if lines else None
    max_steps = int(OmegaConf.load(run_dir / CONFIG_FILE).train.max_steps)
    if age is None:
        state = PENDING
    elif metrics["step"] >= max_steps:
        state = TRAINED
    else:
        gaps = (
            after["time"] - line["time"]
            for line, after in itertools.pairwise(lines)
            if RESTARTS not in after  # before those, nobody was there
        )
        patience = max(STALLED_AFTER_S, STALLED_AFTER_INTERVALS * max(gaps, default=0.0))
        state = RUNNING if age < patience else STALLED
    return RunStatus(
        name=run_dir.name,
        state=state,
        step=int(metrics["step"]),
        max_steps=max_steps,
        checkpoint=newest_step(run_dir),
        age_s=age,
        metrics=metrics,
        error=metrics.get(VALIDATION_ERROR),
    )
