"""How far a run is, from its folder alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from imf_ray.agents.pretrained import CONFIG
from imf_ray.training.checkpoint import MANIFEST, PATTERN, step_of
from imf_ray.training.tracking import METRICS_FILE, latest_metrics, read_metrics

SILENT_S = 300.0
"""A run that has said nothing for so long is not called running."""
WAITING, RUNNING, SILENT, TRAINED = "waiting", "running", "silent", "trained"


@dataclass(frozen=True)
class RunStatus:
    """One run."""

    name: str
    state: str
    """`WAITING`, `RUNNING`, `SILENT` or `TRAINED`; of a trial that has ended, its record's."""
    step: int
    max_steps: int
    checkpoint: int | None
    """Step of the newest checkpoint that was finished; whether it is whole still, a resume sees."""
    age_s: float | None
    """Since its last line of metrics."""
    metrics: dict[str, Any]
    """The latest value of each."""


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return (folder / CONFIG).is_file()


def read_status(run_dir: Path, now: float) -> RunStatus:
    """What a run's folder says at the time `now`, in seconds since the epoch."""
    lines = read_metrics(run_dir / METRICS_FILE)
    metrics = functools.reduce(latest_metrics, lines, {"step": 0})
    finished = (manifest.parent for manifest in run_dir.glob(f"{PATTERN}/{MANIFEST}"))
    age = now - lines[-1]["time"] if lines else None
    max_steps = int(OmegaConf.load(run_dir / CONFIG).train.max_steps)
    if age is None:
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
        checkpoint=max(map(step_of, finished), default=None),
        age_s=age,
        metrics=metrics,
    )
