"""The Tune function of a trial: it trains one configuration and reports its validations."""

from __future__ import annotations

import dataclasses
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.train import WorkerGroupError

from imf_ray.aliases import rename_options
from imf_ray.allocation import RunResources
from imf_ray.errors import UserError
from imf_ray.files import retry_io
from imf_ray.ray_internals import wait_for_task_events
from imf_ray.schema import Config
from imf_ray.storage import display_path
from imf_ray.sweep.sweep_dir import SweepDir
from imf_ray.sweep.trial_record import FAILED, FINISHED, STOPPED, TrialDir, TrialRecord
from imf_ray.sweep.trial_reports import (
    ForwardReports,
    reports_until_done,
    start_report_queue,
)
from imf_ray.training.fault_tolerance import error_summary
from imf_ray.training.run_identity import PreparedRun, load_run
from imf_ray.training.trainer import InitialWeights, RunOutcome, fit


@dataclass(frozen=True)
class TrialSpec:
    """Input of one trial."""

    name: str
    params: dict[str, Any]
    """Values of the options that the search space varies."""
    config: Config
    resources: RunResources
    sweep_dir: SweepDir
    initial_weights: ray.ObjectRef | None = None
    """The `InitialWeights` of a new trial."""


def run_trial(trial: TrialSpec) -> None:
    """Train and evaluate one configuration, and write `trial.json` into its run folder.

    If the trial already has a record from an earlier session, this returns at once. An interrupted
    trial resumes from its newest checkpoint.

    Some failures end the trial with a failed record, and the next session of the sweep retries it:
    invalid input, storage that failed for long, and more worker failures than `train.max_failures`.
    All other errors are raised, so Tune restarts the trial at once. Errors in the data before
    training starts are also raised, because the sweep has already checked the data.
    """
    run_dir = trial.sweep_dir.trial(trial.name)
    if run_dir.read_record() is not None:
        return
    record = TrialRecord(
        name=trial.name,
        params=trial.params,
        status=FAILED,
        run_dir=str(run_dir),
        driver_pid=os.getpid(),
        driver_host=socket.gethostname(),
    )
    sweep_is_stopping = trial.sweep_dir.stop_requested()
    if sweep_is_stopping or run_dir.stop_requested():
        if not sweep_is_stopping:  # the scheduler stopped the trial before it could resume
            run_dir.download()
            _write_finished_record(run_dir, record, STOPPED, None)
        run_dir.clear_stop()
        return
    run = retry_io(load_run, trial.config)  # `prepare_sweep` has checked the options
    initial = None if trial.initial_weights is None else ray.get(trial.initial_weights)
    try:
        outcome = _fit_and_report(run, run_dir, trial, initial)
    except UserError as error:
        record = dataclasses.replace(record, error=str(error))
        run_dir.write_record(record)
    except WorkerGroupError as error:
        record = dataclasses.replace(record, error=error_summary(error))
        run_dir.write_record(record)
    else:
        if outcome.stopped and trial.sweep_dir.stop_requested():
            return
        status = STOPPED if outcome.stopped else FINISHED
        record = _write_finished_record(run_dir, record, status, outcome.swanlab_run)
    # The last validations end after the last report of training, so all are reported again.
    for metrics in [{"status": record.status}, *run_dir.read_validations()]:
        tune.report(metrics)


def _fit_and_report(
    run: PreparedRun,
    run_dir: TrialDir,
    trial: TrialSpec,
    initial: InitialWeights | None,
) -> RunOutcome:
    """Train, and forward every report to Tune when it arrives.

    Raises:
        See `fit`.
    """
    queue = start_report_queue(run_dir.name)
    with ThreadPoolExecutor(1) as executor:
        callbacks = [ForwardReports(queue)]
        varied = list(rename_options(trial.params))
        training = executor.submit(fit, run, run_dir, trial.resources, callbacks, initial, varied)
        for report in reports_until_done(queue, training):
            tune.report(report)
    ray.kill(queue)  # an actor that ends gracefully would be restarted
    wait_for_task_events()  # Tune kills this process soon
    return training.result()


def _write_finished_record(
    run_dir: TrialDir, record: TrialRecord, status: str, swanlab_run: str | None
) -> TrialRecord:
    """Write and return the record of a trial that ended, with its best checkpoint."""
    best = run_dir.best_checkpoint()
    finished = dataclasses.replace(
        record,
        status=status,
        metrics=dict(best.metrics),
        best_checkpoint=display_path(best.path),
        workers=retry_io(run_dir.read_workers),
        swanlab_run=swanlab_run,
        failed_validation_steps=[
            checkpoint.step
            for checkpoint in run_dir.list_checkpoints()
            if checkpoint.has_validation and not checkpoint.validation_succeeded
        ],
    )
    run_dir.write_record(finished)
    return finished
