"""One trial: a Tune function that launches one training run and reports how it was judged."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from imf_ray.config import config_from_dict
from imf_ray.resources import RunResources
from imf_ray.training.tracking import WORKERS_DIR
from imf_ray.training.trainer import check_run, fit

TRIAL_FILE = "trial.json"


@dataclass(frozen=True)
class TrialRecord:
    """All that is known of a trial."""

    name: str
    params: dict[str, Any]
    status: str
    """`finished`, or `failed` with the reason in `error`."""
    metrics: dict[str, Any]
    """Of the best checkpoint."""
    best_checkpoint: str | None
    run_dir: str
    driver_pid: int
    driver_host: str
    workers: list[dict[str, Any]]
    """Rank, pid, host, gpu_ids and log_path of each worker."""
    swanlab_run: str | None
    error: str | None = None


def run_trial(params: dict[str, Any]) -> None:
    """Train and judge one configuration; the record is written into the run's folder.

    `params` holds `number`, `params`, `config` and `resources` as plain dictionaries, and
    `trials_dir`.
    """
    config = config_from_dict(params["config"])
    run_dir = Path(params["trials_dir"]) / params["name"]
    resources = RunResources(**params["resources"])
    outcome = fit(check_run(config), run_dir, resources, [TuneReportCallback()])
    checkpoint, metrics = outcome.best()
    record = TrialRecord(
        name=params["name"],
        params=params["params"],
        status="finished",
        metrics=metrics,
        best_checkpoint=checkpoint,
        run_dir=str(run_dir),
        driver_pid=os.getpid(),
        driver_host=socket.gethostname(),
        workers=read_workers(run_dir),
        swanlab_run=outcome.swanlab_run,
    )
    (run_dir / TRIAL_FILE).write_text(json.dumps(dataclasses.asdict(record), indent=1))
    tune.report({**metrics, "best_checkpoint": checkpoint})


def read_workers(run_dir: Path) -> list[dict[str, Any]]:
    """The records that the run's workers left."""
    return [json.loads(p.read_text()) for p in sorted((run_dir / WORKERS_DIR).glob("*.json"))]


def read_trial(run_dir: Path, params: dict[str, Any], error: str | None) -> TrialRecord:
    """The record of a trial, or that of its failure."""
    path = run_dir / TRIAL_FILE
    if path.is_file():
        return TrialRecord(**json.loads(path.read_text()))
    return TrialRecord(
        name=run_dir.name,
        params=params,
        status="failed",
        metrics={},
        best_checkpoint=None,
        run_dir=str(run_dir),
        driver_pid=0,
        driver_host="",
        workers=read_workers(run_dir),
        swanlab_run=None,
        error=error or "The trial left no record.",
    )
