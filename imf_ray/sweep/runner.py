"""Runs the trials of a sweep with Ray Tune, as many concurrently as fit into the cluster.

The state of a sweep is its folder: `space.json` and a run folder for each trial. A sweep resumes
from that folder alone. Tune's own saved state is never read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray import tune

from imf_ray import ray_internals
from imf_ray.allocation import DRIVER_CPUS, RunResources
from imf_ray.errors import UserError
from imf_ray.files import RETRY_DELAYS_S
from imf_ray.sweep.prepare import Sweep
from imf_ray.sweep.schedulers import make_scheduler
from imf_ray.sweep.sweep_dir import SweepDir
from imf_ray.sweep.trial import TrialSpec, run_trial
from imf_ray.sweep.trial_metrics import TrialCounts
from imf_ray.sweep.trial_record import FAILED, TrialRecord
from imf_ray.sweep.trial_searcher import TrialSearcher
from imf_ray.training.fault_tolerance import error_summary, remove_orphaned_placement_groups
from imf_ray.training.trainer import starting_weights

MAX_DRIVER_FAILURES = 20
"""Maximum number of times that Tune restarts a trial whose driver died, usually with its node.

The trial then resumes from its newest checkpoint."""
CLEANUP_DELAYS_S = (2.0, 30.0)
"""Seconds from a driver's death to each removal of orphaned placement groups.

Ray ends a controller once it detects that its driver died. That is at once, or after some missed
heartbeats if the node died."""
log = logging.getLogger(__name__)


def run_sweep(sweep: Sweep, resources: RunResources, concurrent_trials: int) -> list[TrialRecord]:
    """Run all incomplete trials and return the records of all trials.

    A trial that failed has a record with its error.

    Args:
        resources: the resources of each trial.

    Raises:
        KeyboardInterrupt: the sweep was asked to stop.
        UserError: every trial failed.
    """
    _reset_session(sweep)
    shared: dict[tuple[str, ...], ray.ObjectRef] = {}

    def make_spec(name: str) -> TrialSpec:
        return _trial_spec(sweep, name, resources, shared)

    specs = {} if sweep.space.search else {name: make_spec(name) for name in sweep.params}

    def trainable(params: dict[str, Any]) -> None:
        name, spec = params["trial"], params.get("spec")
        run_trial(specs[name] if spec is None else ray.get(spec))

    ray_internals.label_trials(trainable, "trial")
    ray_internals.start_shared_actors()

    trial_counts = TrialCounts(sweep.sweep_dir.name, sweep.trial_dirs)

    def make_tuner() -> tune.Tuner:
        searcher = TrialSearcher(sweep, make_spec) if sweep.space.search else None
        return tune.Tuner(
            tune.with_resources(trainable, _trial_placement_group(resources)),
            param_space={} if searcher else {"trial": tune.grid_search(list(specs))},
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=len(sweep.params) if searcher else 1,
                max_concurrent_trials=concurrent_trials,
                scheduler=make_scheduler(sweep.space.scheduler, sweep.max_steps, sweep.trial_dirs),
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=sweep.sweep_dir.tune_dir.name,
                storage_path=str(sweep.sweep_dir.tune_dir.parent),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=MAX_DRIVER_FAILURES),
                callbacks=[TrialCleanupCallback(sweep.sweep_dir), trial_counts],
            ),
        )

    errors: dict[str, str] = {}
    for result in _fit_with_tuner_restarts(make_tuner, sweep.sweep_dir):
        if result.error is not None:
            errors[result.config["trial"]] = error_summary(result.error)
    if sweep.sweep_dir.stop_requested():
        raise KeyboardInterrupt
    records = [_read_record(sweep, name, errors.get(name)) for name in sweep.params]
    if all(record.status == FAILED for record in records):
        raise UserError(f"Every trial failed. Error of the first trial: {records[0].error}")
    return records


def _trial_spec(
    sweep: Sweep,
    name: str,
    resources: RunResources,
    shared: dict[tuple[str, ...], ray.ObjectRef],
) -> TrialSpec:
    """Return the input of a trial.

    Args:
        shared: the initial weights of the other trials in Ray, by source and tensors.
    """
    config = sweep.configs[name]
    initial, reference = starting_weights(config, sweep.sweep_dir.trial(name)), None
    if initial is not None:
        key = (initial.source, *initial.tensors)
        reference = shared[key] = shared.get(key) or ray.put(initial)
    return TrialSpec(name, sweep.params[name], config, resources, sweep.sweep_dir, reference)


def stop_sweep(sweep: Sweep) -> None:
    """Ask running trials to save a checkpoint and stop, and prevent others from starting."""
    sweep.sweep_dir.request_stop()
    for trial_dir in sweep.trial_dirs.values():
        if trial_dir.read_record(retry=False) is None:
            trial_dir.request_stop()


def safe_to_kill_sweep(sweep: Sweep) -> bool:
    """Return True if killing the sweep loses no update, after a request to stop."""
    return all(
        trial_dir.safe_to_kill(num_steps)
        for trial_dir, num_steps in zip(
            sweep.trial_dirs.values(), sweep.steps.values(), strict=True
        )
        if trial_dir.read_record(retry=False) is None
    )


def _trial_placement_group(resources: RunResources) -> tune.PlacementGroupFactory:
    """Return the placement group of a trial: a bundle for its driver and one per rollout actor.

    Tune schedules all descendants of the driver in this placement group. They include the rollout
    actors of validation, which would wait forever without their own bundles.
    """
    rollout = resources.rollout
    selector = rollout.ray_options.get("label_selector", {})
    return tune.PlacementGroupFactory(
        [{"CPU": DRIVER_CPUS}, *[{"CPU": rollout.num_cpus}] * rollout.num_actors],
        bundle_label_selector=[{}, *[selector] * rollout.num_actors],
    )


def _fit_with_tuner_restarts(
    make_tuner: Callable[[], tune.Tuner], sweep_dir: SweepDir
) -> tune.ResultGrid:
    """Run Tune, and restart it if its own loop fails. Trials resume from their checkpoints.

    Tune's loop fails if it cannot write its own files, for example because Ray's disk is full. It
    also fails if a driver is killed because memory ran out (Ray 2.60).

    Raises:
        KeyboardInterrupt: Tune failed after the sweep was asked to stop.
        Exception: the error of Tune, if it fails again after each of `RETRY_DELAYS_S`.
    """
    delays = iter(RETRY_DELAYS_S)
    while True:
        started_at = time.monotonic()
        try:
            return make_tuner().fit()
        except Exception as error:
            if sweep_dir.stop_requested():
                raise KeyboardInterrupt from error
            if time.monotonic() - started_at > RETRY_DELAYS_S[-1]:  # Tune had run for a while
                delays = iter(RETRY_DELAYS_S)
            delay = next(delays, None)
            if delay is None:
                raise
            log.warning("Ray Tune failed; the sweep resumes in %.0f s: %s", delay, error)
            time.sleep(delay)
            remove_orphaned_placement_groups(include_driver=True)
            _schedule_placement_group_cleanup()


class TrialCleanupCallback(tune.Callback):
    """Cleans up after a trial whose driver died, so that other trials can use its resources."""

    def __init__(self, sweep_dir: SweepDir) -> None:
        self._sweep_dir = sweep_dir

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Clean up before Tune restarts the trial, which may wait for the same resources."""
        self._clean_up(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Clean up after a trial that Tune does not restart."""
        self._clean_up(trial)

    def _clean_up(self, trial: Any) -> None:
        self._sweep_dir.trial(_trial_name(trial)).mark_workers_lost()
        _schedule_placement_group_cleanup()


def _schedule_placement_group_cleanup() -> None:
    """Remove orphaned placement groups after each of `CLEANUP_DELAYS_S`."""
    for delay in CLEANUP_DELAYS_S:
        timer = threading.Timer(delay, remove_orphaned_placement_groups)
        timer.daemon = True  # at the end of the sweep, Ray frees all resources anyway
        timer.start()


def _reset_session(sweep: Sweep) -> None:
    """Delete stop requests, incomplete records and worker records of an earlier session."""
    sweep.sweep_dir.clear_stop()
    for trial_dir in sweep.trial_dirs.values():
        trial_dir.clear_stop()
        trial_dir.delete_workers()
        record = trial_dir.read_record()
        if record is not None and not record.is_complete:
            trial_dir.delete_record()


def _read_record(sweep: Sweep, name: str, error: str | None) -> TrialRecord:
    """Return the record of a trial, or a failed record if its driver died before writing one."""
    trial_dir = sweep.sweep_dir.trial(name)
    return trial_dir.read_record() or TrialRecord(
        name,
        sweep.params[name],
        FAILED,
        run_dir=str(trial_dir),
        workers=trial_dir.read_workers(),
        error=error or "The trial's driver ended without an error message.",
    )


def _trial_name(trial: Any) -> str:
    return trial.config["trial"]
