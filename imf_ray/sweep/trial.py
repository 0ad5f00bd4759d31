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

from imf_ray.allocation import RunResources
from imf_ray.config import config_from_dict
from imf_ray.errors import UserError
from imf_ray.files import retry_io, write_atomically
from imf_ray.storage import authoritative_path, display_path, local_dir, read_text_or_none, to_local
from imf_ray.training.checkpoint import (
    best_checkpoint,
    download_run,
    list_checkpoints,
    read_validations,
)
from imf_ray.training.failures import error_summary
from imf_ray.training.loop import EARLIER_VALIDATIONS_KEY
from imf_ray.training.stop_signal import clear_stop, stop_requested
from imf_ray.training.tracking import read_workers
from imf_ray.training.trainer import PreparedRun, RunOutcome, fit, prepare_run

TRIAL_FILE = "trial.json"
REPORT_POLL_S = 1.0
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
    failed_validation_steps: list[int] = field(default_factory=list)
    """Steps of the checkpoints that it keeps of which the judgement failed."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is to be done again: neither the trial failed, nor a judgement of it.

        What the scheduler has stopped stays as it is.
        """
        return self.status == STOPPED or (
            self.status == FINISHED and not self.failed_validation_steps
        )


def run_trial(params: dict[str, Any]) -> None:
    """Train and judge one configuration; the record is written into the run's folder.

    A trial that ended in an earlier session of the sweep ends here, and one that was interrupted
    goes on. Bad input is a failed record, and so is storage that failed for long; the next session
    of the sweep tries again, as it does where workers failed more often than `train.max_failures`
    allows. Other errors are raised, so that Tune does, at once; so is what is wrong with the data
    before training begins, since the sweep has found them good.

    `params` holds `name`, `params` and `config` as plain dictionaries, `resources` (`RunResources`),
    `sweep_dir` and `run_dir`.
    """
    config = config_from_dict(params["config"])
    run_dir = to_local(Path(params["run_dir"]))
    resources = params["resources"]
    sweep_dir = to_local(Path(params["sweep_dir"]))
    if retry_io(lambda: read_trial(run_dir)) is not None:
        return
    record = TrialRecord(
        name=params["name"],
        params=params["params"],
        status=FAILED,
        run_dir=display_path(run_dir),
        driver_pid=os.getpid(),
        driver_host=socket.gethostname(),
    )
    sweep_stops = retry_io(lambda: stop_requested(sweep_dir))
    if sweep_stops or retry_io(lambda: stop_requested(run_dir)):
        if not sweep_stops:  # by the scheduler, before it could begin to go on
            retry_io(lambda: download_run(run_dir))
            retry_io(
                partial(write_trial, retry_io(partial(_finished_record, record, STOPPED, None)))
            )
        retry_io(lambda: clear_stop(run_dir))
        return
    run = retry_io(lambda: prepare_run(config))
    try:
        outcome = _fit_and_report(run, run_dir, resources)
    except UserError as error:
        record = dataclasses.replace(record, error=str(error))
    except WorkerGroupError as error:
        record = dataclasses.replace(record, error=error_summary(error))
    else:
        if outcome.stopped and retry_io(lambda: stop_requested(sweep_dir)):
            return
        status = STOPPED if outcome.stopped else FINISHED
        record = retry_io(partial(_finished_record, record, status, outcome.swanlab_run))
    retry_io(partial(write_trial, record))
    # The last validations end after the last report of the training.
    for metrics in [{"status": record.status}, *read_validations(run_dir)]:
        tune.report(metrics)


class _ForwardReports(UserCallback):
    """Hands what a run reports to the trial, from Ray Train's controller."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Pass on what rank 0 says, and first what it found out before."""
        told = dict(metrics[0])
        try:
            for found in [*told.pop(EARLIER_VALIDATIONS_KEY, []), told]:
                self._queue.put(found)
        except RayActorError as error:  # what is lost is told again when the trial ends
            log.warning("A report did not reach Tune: %s", error)


def _fit_and_report(run: PreparedRun, run_dir: Path, resources: RunResources) -> RunOutcome:
    """Train, and tell Tune what is reported as it comes; `fit` says what is raised.

    Ray's own callback for this gives Tune a second queue to look into, and Tune's loop waits for
    itself for ever when a report is in each of the two (Ray 2.60): the end of a trial is one.
    """
    again = {"max_restarts": -1, "max_task_retries": -1}  # its node may be lost
    reports = Queue(actor_options={"num_cpus": 0, **again})
    with ThreadPoolExecutor(1) as trainer:
        running = trainer.submit(fit, run, run_dir, resources, [_ForwardReports(reports)])
        while not running.done() or not reports.empty():
            with suppress(Empty):
                tune.report(reports.get(timeout=REPORT_POLL_S))
    reports.shutdown(force=True)  # asked to end, it would be started again
    return running.result()


def _finished_record(record: TrialRecord, status: str, swanlab_run: str | None) -> TrialRecord:
    """The record of a trial that has ended, with the best checkpoint that its run keeps."""
    run_dir = local_dir(record.run_dir)
    best = best_checkpoint(run_dir)
    return dataclasses.replace(
        record,
        status=status,
        metrics=dict(best.metrics),
        best_checkpoint=display_path(best.path),
        workers=read_workers(run_dir),
        swanlab_run=swanlab_run,
        failed_validation_steps=[
            c.step for c in list_checkpoints(run_dir) if c.validated and not c.judged
        ],
    )


def write_trial(record: TrialRecord) -> None:
    """Write a trial's record into its run's folder."""
    path = local_dir(record.run_dir) / TRIAL_FILE
    write_atomically(path, json.dumps(dataclasses.asdict(record), indent=1))


def read_trial(run_dir: Path) -> TrialRecord | None:
    """The record that a trial left, if it ended.

    Raises:
        StorageError: it cannot be read.
        UserError: it is none.
    """
    path = authoritative_path(run_dir / TRIAL_FILE)
    text = read_text_or_none(path)
    if text is None:
        return None
    try:
        return TrialRecord(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is not the record of a trial ({error}): remove it to judge the trial again."
        ) from error
