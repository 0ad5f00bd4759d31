"""Runs a search space with Ray Tune, as many trials at a time as the cluster has room for.

What a sweep is stands in its folder: `space.json`, and a folder for each trial. A sweep goes on
from there alone: nothing that Tune pickles is read again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import TrialScheduler

from imf_ray.allocation import (
    DRIVER_CPUS,
    RunResources,
    allocate_run,
    max_concurrent_trials,
)
from imf_ray.cluster import ClusterSize
from imf_ray.config import config_to_dict
from imf_ray.errors import UserError
from imf_ray.files import RETRY_DELAYS_S, retry_io, write_atomically, write_if_changed
from imf_ray.rollout.actor_pool import RolloutSpec, run_episodes
from imf_ray.rollout.policies import EXPERT, UNTRAINED
from imf_ray.rollout.records import summarize
from imf_ray.rollout.rollout_config import agent_rollout_config, scripted_rollout_config
from imf_ray.schema import Config
from imf_ray.storage import authoritative_path, delete, display_path, download
from imf_ray.sweep.results import JSON_FILE, read_sweep
from imf_ray.sweep.schedulers import check_scheduler, make_scheduler
from imf_ray.sweep.search_space import SearchSpace, trial_name
from imf_ray.sweep.trial import (
    FAILED,
    TRIAL_FILE,
    TrialRecord,
    read_trial,
    run_trial,
)
from imf_ray.training.failures import error_summary
from imf_ray.training.placement import remove_orphaned_placement_groups
from imf_ray.training.stop_signal import clear_stop, request_stop, safe_to_kill, stop_requested
from imf_ray.training.tracking import WORKERS_DIR, mark_workers_lost, read_workers
from imf_ray.training.trainer import enable_validation, init_or_verify_run_dir, prepare_run

MAX_DRIVER_FAILURES = 20
"""How often a trial whose driver died (of a lost node, mostly) is started again; it goes on from
its checkpoints."""
CLEANUP_DELAYS_S = (2.0, 30.0)
"""Ray ends a controller as soon as it learns of the death of the driver that made it: at once, or,
if a node died, after some missed answers."""
TRIALS_DIR, TUNE_DIR = "trials", "tune"
SPACE_FILE, BASELINES_FILE = "space.json", "baselines.json"
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A checked sweep: its trials by name."""

    sweep_dir: Path
    space: SearchSpace
    configs: dict[str, Config]
    params: dict[str, dict[str, Any]]

    described: str
    """One line on the data and the length of the first."""

    @property
    def longest(self) -> int:
        """Updates of the longest trial."""
        return max(config.train.max_steps for config in self.configs.values())

    @property
    def trials_dir(self) -> Path:
        """Where the runs of the trials are."""
        return self.sweep_dir / TRIALS_DIR

    def run_dir(self, name: str) -> Path:
        """The folder of a trial's run."""
        return self.trials_dir / name

    @property
    def first_config(self) -> Config:
        """The configuration of the first trial; trials differ only in what the grid varies."""
        return next(iter(self.configs.values()))


def prepare_sweep(space: SearchSpace, overrides: Sequence[str], sweep_dir: Path) -> Sweep:
    """Check every trial of a search space before the first one starts.

    Raises:
        UserError: a trial or the scheduler cannot be built, the data are bad, or the folder is that
            of another sweep.
    """
    download(sweep_dir, "*.json", "*.jsonl", "*.yaml")
    begun = time.time()
    if (sweep_dir / SPACE_FILE).is_file():
        begun = _started_at(sweep_dir / SPACE_FILE)
        before, _ = load_saved_space(sweep_dir)
        if before != space:
            raise UserError(
                f"The sweep {display_path(sweep_dir)} was started with another search space, "
                f"{before.name}. Choose another run_name, or go on with it by resume=auto."
            )
    configs, params, described = {}, {}, ""
    for number, combination in enumerate(space.combinations()):
        name = trial_name(number, combination)
        config = enable_validation(space.config(overrides, combination))
        run = prepare_run(config)
        init_or_verify_run_dir(run, sweep_dir / TRIALS_DIR / name)
        configs[name], params[name] = config, combination
        described = described or run.describe()
    sweep = Sweep(sweep_dir, space, configs, params, described)
    check_scheduler(space.scheduler, sweep.longest)
    content = {
        "space": dataclasses.asdict(space),
        "overrides": list(overrides),
        "begun": begun,
    }
    write_if_changed(sweep_dir / SPACE_FILE, json.dumps(content, indent=1))
    return sweep


def load_saved_space(sweep_dir: Path) -> tuple[SearchSpace, list[str]]:
    """The search space and the overrides that a sweep was started with."""
    content = json.loads((sweep_dir / SPACE_FILE).read_text())
    return SearchSpace(**content["space"]), content["overrides"]


def find_resumable_sweep(storage: Path, name: str | None) -> Path | None:
    """The sweep of that name, or else the newest one of which some trial has not ended well.

    None if there is none.
    """
    for path in authoritative_path(storage).glob(f"*/{SPACE_FILE}") if name is None else ():
        download(storage / path.parent.name / SPACE_FILE)
        download(storage / path.parent.name / JSON_FILE)
    if name is not None:
        download(storage / name / SPACE_FILE)
        return storage / name if (storage / name / SPACE_FILE).is_file() else None
    spaces = [path for path in storage.glob(f"*/{SPACE_FILE}") if not _is_complete(path.parent)]
    newest = max(spaces, key=_started_at, default=None)
    return None if newest is None else newest.parent


def _is_complete(sweep_dir: Path) -> bool:
    if not (sweep_dir / JSON_FILE).is_file():
        return False
    records, _ = read_sweep(sweep_dir)
    return all(record.is_complete for record in records)


def _started_at(space: Path) -> float:
    return json.loads(space.read_text()).get("begun", space.stat().st_mtime)


def allocate_sweep(sweep: Sweep, size: ClusterSize) -> tuple[RunResources, int]:
    """What each trial takes from the cluster, and how many run at a time.

    Raises:
        UserError: a trial does not fit.
    """
    slots = max_concurrent_trials(sweep.first_config, size, len(sweep.configs))
    return allocate_run(sweep.first_config, size, slots), slots


def evaluate_expert(sweep: Sweep, resources: RunResources) -> dict[str, float]:
    """Metrics of the table's upper end, on the seeds on which the trials are judged."""
    return _evaluate_baseline(
        sweep, resources, RolloutSpec(EXPERT, scripted_rollout_config(sweep.first_config.task))
    )


def evaluate_untrained(
    sweep: Sweep, resources: RunResources, trial: TrialRecord
) -> dict[str, float]:
    """Metrics of its lower end: the agent of a trial with fresh weights."""
    config = sweep.configs[trial.name]
    settings = agent_rollout_config(config, config.train.rollout_seed)
    policy = f"{UNTRAINED}{trial.best_checkpoint}"
    return _evaluate_baseline(
        sweep, resources, RolloutSpec(policy, settings, config.evaluate.envs_per_actor)
    )


def _evaluate_baseline(sweep: Sweep, resources: RunResources, job: RolloutSpec) -> dict[str, float]:
    """Judged once, unless a simulator was lost on the way."""
    path = sweep.sweep_dir / BASELINES_FILE
    known = json.loads(path.read_text()) if path.is_file() else {}
    if job.policy not in known:
        train = sweep.first_config.train
        seeds = range(train.rollout_seed, train.rollout_seed + train.rollout_num_episodes)
        played = run_episodes(job, seeds, resources.rollout)
        records = [episode.record for episode in played]
        known[job.policy] = summarize(records).metrics()
        if all(record.error is None for record in records):
            write_atomically(path, json.dumps(known))
    return known[job.policy]


def run_sweep(sweep: Sweep, resources: RunResources, slots: int) -> list[TrialRecord]:
    """Run all trials that have not ended; a failed one is a record with its error.

    Raises:
        KeyboardInterrupt: it was asked to stop.
        UserError: every trial failed.
    """
    _reset_session(sweep)
    # The first bundle holds the trial's driver. Validation runs in grandchildren of the driver,
    # which Tune's placement group captures: the other bundles are the room they need.
    rollout = resources.rollout
    selector = rollout.ray_options.get("label_selector", {})
    bundles = tune.PlacementGroupFactory(
        [{"CPU": DRIVER_CPUS}, *[{"CPU": rollout.num_cpus}] * rollout.num_actors],
        bundle_label_selector=[{}, *[selector] * rollout.num_actors],
    )
    trials = [
        {
            "name": name,
            "params": sweep.params[name],
            "config": config_to_dict(config),
            "resources": resources,
            "sweep_dir": str(sweep.sweep_dir),
            "run_dir": str(sweep.run_dir(name)),
        }
        for name, config in sweep.configs.items()
    ]

    def make_tuner() -> tune.Tuner:
        return tune.Tuner(
            tune.with_resources(_trial, bundles),
            param_space={"trial": tune.grid_search(trials)},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=slots,
                scheduler=_scheduler(sweep),
                trial_name_creator=_name_of,
                trial_dirname_creator=_name_of,
            ),
            run_config=tune.RunConfig(
                name=TUNE_DIR,
                storage_path=str(sweep.sweep_dir),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=MAX_DRIVER_FAILURES),
                callbacks=[TrialCleanupCallback(sweep)],
            ),
        )

    errors: dict[str, str] = {}
    for result in _fit_with_tuner_restarts(make_tuner, sweep.sweep_dir):
        if result.error is not None:
            errors[result.config["trial"]["name"]] = error_summary(result.error)
    if retry_io(lambda: stop_requested(sweep.sweep_dir)):
        raise KeyboardInterrupt
    records = [_record(sweep, name, errors.get(name)) for name in sweep.configs]
    if all(record.status == FAILED for record in records):
        raise UserError(f"Every trial failed. The first one: {records[0].error}")
    return records


def stop_sweep(sweep: Sweep) -> None:
    """Ask the trials that run for a checkpoint, and the others not to begin."""
    request_stop(sweep.sweep_dir)
    for name in sweep.configs:
        if read_trial(sweep.run_dir(name)) is None:
            request_stop(sweep.run_dir(name))


def safe_to_kill_sweep(sweep: Sweep) -> bool:
    """Whether killing the sweep now loses nothing, after it was asked to stop."""
    return all(
        safe_to_kill(sweep.run_dir(name), config.train.max_steps)
        for name, config in sweep.configs.items()
        if read_trial(sweep.run_dir(name)) is None
    )


def _fit_with_tuner_restarts(
    make_tuner: Callable[[], tune.Tuner], sweep_dir: Path
) -> tune.ResultGrid:
    """Run Tune; where its own loop fails, begin again: trials go on from their checkpoints.

    The loop ends by any error of its own writing (Ray's disk is full, which need not be that of the
    runs), and by a driver that died of the memory's end (Ray 2.60).

    Raises:
        KeyboardInterrupt: it failed after the sweep was asked to stop.
        Exception: it fails again and again; what Tune raised.
    """
    pauses = iter(RETRY_DELAYS_S)
    while True:
        begun = time.monotonic()
        try:
            return make_tuner().fit()
        except Exception as error:
            if retry_io(lambda: stop_requested(sweep_dir)):
                raise KeyboardInterrupt from error
            if time.monotonic() - begun > RETRY_DELAYS_S[-1]:  # it had worked for a while
                pauses = iter(RETRY_DELAYS_S)
            pause = next(pauses, None)
            if pause is None:
                raise
            log.warning("Ray Tune failed; the sweep goes on in %.0f s: %s", pause, error)
            time.sleep(pause)
            remove_orphaned_placement_groups(made_by_driver=True)
            _schedule_placement_group_cleanup()


class TrialCleanupCallback(tune.Callback):
    """Cleans up after drivers of trials that died: others may be waiting for what they held."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Clean up, though the trial is tried again: it may have to wait for its place."""
        self._clean_up(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Clean up after a trial that has failed for good."""
        self._clean_up(trial)

    def _clean_up(self, trial: Any) -> None:
        """Free the places of the trial, once its controller, and so its workers, are gone."""
        mark_workers_lost(self._sweep.run_dir(_name_of(trial)))
        _schedule_placement_group_cleanup()


def _schedule_placement_group_cleanup() -> None:
    for pause in CLEANUP_DELAYS_S:
        timer = threading.Timer(pause, remove_orphaned_placement_groups)
        timer.daemon = True  # what it frees is freed with the sweep at the latest
        timer.start()


def _reset_session(sweep: Sweep) -> None:
    """Of an earlier session: requests to stop, who did not end well, and where workers were."""
    clear_stop(sweep.sweep_dir)
    for name in sweep.configs:
        run_dir = sweep.run_dir(name)
        clear_stop(run_dir)
        delete(run_dir / WORKERS_DIR)
        record = read_trial(run_dir)
        if record is not None and not record.is_complete:
            delete(run_dir / TRIAL_FILE)


def _record(sweep: Sweep, name: str, error: str | None) -> TrialRecord:
    """What a trial has written, or what is known of one whose driver died."""
    run_dir = sweep.run_dir(name)
    return retry_io(lambda: read_trial(run_dir)) or TrialRecord(
        name,
        sweep.params[name],
        FAILED,
        run_dir=display_path(run_dir),
        workers=read_workers(run_dir),
        error=error or "its driver ended without a word",
    )


def _scheduler(sweep: Sweep) -> TrialScheduler | None:
    run_dirs = {name: sweep.run_dir(name) for name in sweep.configs}
    return make_scheduler(sweep.space.scheduler, sweep.longest, run_dirs)


def _name_of(trial: Any) -> str:
    return trial.config["trial"]["name"]


def _trial(config: dict[str, Any]) -> None:
    run_trial(config["trial"])
