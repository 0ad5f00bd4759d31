"""One trial: a Tune function that launches one training run and reports how it was judged."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import RayActorError
from ray.train import UserCallback, WorkerGroupError
from ray.util.queue import Empty, Queue

from imf_ray.config import config_from_dict
from imf_ray.errors import UserError
from imf_ray.files import insist, write_atomically
from imf_ray.places import here, origin, read_if_there, shown, working_copy
from imf_ray.resources import RunResources
from imf_ray.training.checkpoint import (
    best_checkpoint,
    list_checkpoints,
    pull_run,
    read_validations,
)
from imf_ray.training.failures import last_line
from imf_ray.training.interruption import stop_requested, withdraw_stop
from imf_ray.training.loop import EARLIER
from imf_ray.training.tracking import read_workers
from imf_ray.training.trainer import CheckedRun, RunOutcome, check_run, fit

TRIAL_FILE = "trial.json"
LISTEN_S = 1.0
log = logging.getLogger(__name__)
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"


@dataclass(frozen=True)
class TrialRecord:
    """All that is known of a trial."""

    name: str
    params: dict[str, Any]
    status: str
    """`FINISHED`, `STOPPED` (by the scheduler), or `FAILED` with the reason in `error`."""
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
    unjudged: list[int] = field(default_factory=list)
    """Steps of the checkpoints that it keeps of which the judgement failed."""

    @property
    def ended_well(self) -> bool:
        """Whether nothing is to be done again: neither the trial failed, nor a judgement of it.

        What the scheduler has stopped stays as it is.
        """
        return self.status == STOPPED or (self.status == FINISHED and not self.unjudged)


def run_trial(params: dict[str, Any]) -> None:
    """Train and judge one configuration; the record is written into the run's folder.

    A trial that ended in an earlier session of the sweep ends here, and one that was interrupted
    goes on. Bad input is a failed record, and so is storage that failed for long; the next session
    of the sweep tries again, as it does where workers failed more often than `train.max_failures`
    allows. Other errors are raised, so that Tune does, at once; so is what is wrong with the data
    before training begins, since the sweep has found them good.

    `params` holds `name`, `params`, `config` and `resources` as plain dictionaries, `sweep_dir` and
    `run_dir`.
    """
    config = config_from_dict(params["config"])
    run_dir = here(Path(params["run_dir"]))
    resources = RunResources(**params["resources"])
    sweep_dir = here(Path(params["sweep_dir"]))
    if insist(lambda: read_trial(run_dir)) is not None:
        return
    record = TrialRecord(
        name=params["name"],
        params=params["params"],
        status=FAILED,
        run_dir=shown(run_dir),
        driver_pid=os.getpid(),
        driver_host=socket.gethostname(),
    )
    sweep_stops = insist(lambda: stop_requested(sweep_dir))
    if sweep_stops or insist(lambda: stop_requested(run_dir)):
        if not sweep_stops:  # by the scheduler, before it could begin to go on
            insist(lambda: pull_run(run_dir))
            insist(partial(write_trial, insist(partial(_ended, record, STOPPED, None))))
        insist(lambda: withdraw_stop(run_dir))
        return
    run = insist(lambda: check_run(config))
    try:
        outcome = _fit_and_tell(run, run_dir, resources)
    except UserError as error:
        record = dataclasses.replace(record, error=str(error))
    except WorkerGroupError as error:
        record = dataclasses.replace(record, error=last_line(error))
    else:
        if outcome.stopped and insist(lambda: stop_requested(sweep_dir)):
            return
        status = STOPPED if outcome.stopped else FINISHED
        record = insist(partial(_ended, record, status, outcome.swanlab_run))
    insist(partial(write_trial, record))
    # The last validations end after the last report of the training.
    for metrics in [{"status": record.status}, *read_validations(run_dir)]:
        tune.report(metrics)


class _Reports(UserCallback):
    """Hands what a run reports to the trial, from Ray Train's controller."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Pass on what rank 0 says, and first what it found out before."""
        told = dict(metrics[0])
        try:
            for found in [*told.pop(EARLIER, []), told]:
                self._queue.put(found)
        except RayActorError as error:  # what is lost is told again when the trial ends
            log.warning("A report did not reach Tune: %s", error)


def _fit_and_tell(run: CheckedRun, run_dir: Path, resources: RunResources) -> RunOutcome:
    """Train, and tell Tune what is reported as it comes; `fit` says what is raised.

    Ray's own callback for this gives Tune a second queue to look into, and Tune's loop waits for
    itself for ever when a report is in each of the two (Ray 2.60): the end of a trial is one.
    """
    again = {"max_restarts": -1, "max_task_retries": -1}  # its node may be lost
    reports = Queue(actor_options={"num_cpus": 0, **again})
    with ThreadPoolExecutor(1) as trainer:
        running = trainer.submit(fit, run, run_dir, resources, [_Reports(reports)])
        while not running.done() or not reports.empty():
            with suppress(Empty):
                tune.report(reports.get(timeout=LISTEN_S))
    reports.shutdown(force=True)  # asked to end, it would be started again
    return running.result()


def _ended(record: TrialRecord, status: str, swanlab_run: str | None) -> TrialRecord:
    """The record of a trial that has ended, with the best checkpoint that its run keeps."""
    run_dir = working_copy(record.run_dir)
    best = best_checkpoint(run_dir)
    return dataclasses.replace(
        record,
        status=status,
        metrics=dict(best.metrics),
        best_checkpoint=shown(best.path),
        workers=read_workers(run_dir),
        swanlab_run=swanlab_run,
        unjudged=[c.step for c in list_checkpoints(run_dir) if c.validated and not c.judged],
    )


def write_trial(record: TrialRecord) -> None:
    """Write a trial's record into its run's folder."""
    path = working_copy(record.run_dir) / TRIAL_FILE
    write_atomically(path, json.dumps(dataclasses.asdict(record), indent=1))


def read_trial(run_dir: Path) -> TrialRecord | None:
    """The record that a trial left, if it ended.

    Raises:
        StorageError: it cannot be read.
        UserError: it is none.
    """
    path = origin(run_dir / TRIAL_FILE)
    text = read_if_there(path)
    if text is None:
        return None
    try:
        return TrialRecord(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is not the record of a trial ({error}): remove it to judge the trial again."
        ) from error
