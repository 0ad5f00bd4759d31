"""One trial: a Tune function that launches one training run and reports how it was judged."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from imf_ray.config import config_from_dict
from imf_ray.errors import UserError
from imf_ray.files import write_atomically
from imf_ray.resources import RunResources
from imf_ray.training.tracking import WORKERS_DIR
from imf_ray.training.trainer import check_run, fit

TRIAL_FILE = "trial.json"
FINISHED, FAILED = "finished", "failed"


@dataclass(frozen=True)
class TrialRecord:
    """All that is known of a trial."""

    name: str
    params: dict[str, Any]
    status: str
    """`FINISHED`, or `FAILED` with the reason in `error`."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Of the best checkpoint."""
    best_checkpoint: str | None = None
    run_dir: str = ""
    driver_pid: int = 0
    driver_host: str = ""
    workers: list[dict[str, Any]] = field(default_factory=list)
    """Rank, pid, host, gpu_ids and log_path of each worker."""
    swanlab_run: str | None = None
    error: str | None = None


def run_trial(params: dict[str, Any]) -> None:
    """Train and judge one configuration; the record is written into the run's folder.

    Bad input is a failed record; other errors are raised, so that Tune tries again.

    `params` holds `name`, `params`, `config` and `resources` as plain dictionaries, and
    `trials_dir`.
    """
    config = config_from_dict(params["config"])
    run_dir = Path(params["trials_dir"]) / params["name"]
    resources = RunResources(**params["resources"])
    record = TrialRecord(
        name=params["name"],
        params=params["params"],
        status=FAILED,
        run_dir=str(run_dir),
        driver_pid=os.getpid(),
        driver_host=socket.gethostname(),
    )
    try:
        outcome = fit(check_run(config), run_dir, resources, [TuneReportCallback()])
    except UserError as error:
        record = dataclasses.replace(record, error=str(error))
    else:
        best = outcome.best()
        record = dataclasses.replace(
            record,
            status=FINISHED,
            metrics=dict(best.metrics),
            best_checkpoint=str(best.path),
            workers=read_workers(run_dir),
            swanlab_run=outcome.swanlab_run,
        )
    write_atomically(run_dir / TRIAL_FILE, json.dumps(dataclasses.asdict(record), indent=1))
    tune.report({"status": record.status, **record.metrics})


def read_workers(run_dir: Path) -> list[dict[str, Any]]:
    """The records that the run's workers left."""
    return [json.loads(p.read_text()) for p in sorted((run_dir / WORKERS_DIR).glob("*.json"))]


def read_trial(run_dir: Path) -> TrialRecord | None:
    """The record that a trial left, if it ended."""
    path = run_dir / TRIAL_FILE
    return TrialRecord(**json.loads(path.read_text())) if path.is_file() else None
