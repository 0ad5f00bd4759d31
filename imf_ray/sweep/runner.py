"""Runs a search space with Ray Tune, as many trials at a time as the cluster has room for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune

from imf_ray.config import config_to_dict
from imf_ray.errors import UserError
from imf_ray.resources import DRIVER_CPUS, ClusterSize, RunResources, plan_run, plan_slots
from imf_ray.rollout.actors import RolloutJob, run_episodes
from imf_ray.rollout.policies import EXPERT
from imf_ray.rollout.records import RolloutSummary, summarize
from imf_ray.rollout.settings import agent_settings, scripted_settings
from imf_ray.schema import Config
from imf_ray.sweep.search_space import SearchSpace, trial_name
from imf_ray.sweep.trial import (
    FAILED,
    TRIAL_FILE,
    TrialRecord,
    read_trial,
    read_workers,
    run_trial,
)
from imf_ray.training.trainer import check_run, claim_run_dir, with_rollouts

MAX_DRIVER_FAILURES = 2
"""How often a trial whose driver died is started again; it goes on from its checkpoints."""
TRIALS_DIR, TUNE_DIR = "trials", "tune"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A checked sweep: its trials by name."""

    sweep_dir: Path
    configs: dict[str, Config]
    params: dict[str, dict[str, Any]]

    @property
    def trials_dir(self) -> Path:
        """Where the runs of the trials are."""
        return self.sweep_dir / TRIALS_DIR

    @property
    def first_config(self) -> Config:
        """The configuration of the first trial; trials differ only in what the grid varies."""
        return next(iter(self.configs.values()))


def prepare_sweep(space: SearchSpace, overrides: Sequence[str], sweep_dir: Path) -> Sweep:
    """Check every trial of a search space before the first one starts.

    Raises:
        UserError: a trial cannot be built, has bad data, or its folder is another trial's.
    """
    configs, params = {}, {}
    for number, combination in enumerate(space.combinations()):
        name = trial_name(number, combination)
        config = with_rollouts(space.config(overrides, combination))
        claim_run_dir(check_run(config), sweep_dir / TRIALS_DIR / name)
        configs[name], params[name] = config, combination
    return Sweep(sweep_dir, configs, params)


def plan_sweep(sweep: Sweep, size: ClusterSize) -> tuple[RunResources, int]:
    """What each trial takes from the cluster, and how many run at a time.

    Raises:
        UserError: a trial does not fit.
    """
    slots = min(plan_slots(sweep.first_config, size), len(sweep.configs))
    return plan_run(sweep.first_config, size, slots), slots


def judge_oracle(sweep: Sweep, resources: RunResources, policy: str) -> RolloutSummary:
    """An end of the table, on the seeds on which the trials are judged.

    Args:
        policy: `expert`, or `untrained:CHECKPOINT` of a trial.
    """
    config = sweep.first_config
    first = config.train.rollout_seed
    seeds = range(first, first + config.train.rollout_num_episodes)
    job = RolloutJob(policy, scripted_settings(config.task))
    if policy != EXPERT:
        job = RolloutJob(policy, agent_settings(config, first), config.evaluate.envs_per_actor)
    options = {"num_cpus": resources.cpus_per_rollout_actor}
    played = run_episodes(job, seeds, resources.rollout_actors, options)
    return summarize([episode.record for episode in played])


def run_sweep(sweep: Sweep, resources: RunResources, slots: int) -> list[TrialRecord]:
    """Run all trials; a failed one is a record with its error.

    Raises:
        UserError: every trial failed.
    """
    # The first bundle holds the trial's driver. Validation runs in grandchildren of the driver,
    # which Tune's placement group captures: the other bundles are the room they need.
    simulator = {"CPU": resources.cpus_per_rollout_actor}
    bundles = tune.PlacementGroupFactory(
        [{"CPU": DRIVER_CPUS}, *[simulator] * resources.rollout_actors]
    )
    trials = [
        {
            "name": name,
            "params": sweep.params[name],
            "config": config_to_dict(config),
            "resources": dataclasses.asdict(resources),
            "trials_dir": str(sweep.trials_dir),
        }
        for name, config in sweep.configs.items()
    ]
    tuner = tune.Tuner(
        tune.with_resources(_trial, bundles),
        param_space={"trial": tune.grid_search(trials)},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=slots,
            trial_name_creator=lambda trial: trial.config["trial"]["name"],
            trial_dirname_creator=lambda trial: trial.config["trial"]["name"],
        ),
        run_config=tune.RunConfig(
            name=TUNE_DIR,
            storage_path=str(sweep.sweep_dir),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=MAX_DRIVER_FAILURES),
        ),
    )
    for name in sweep.configs:  # records of an earlier session of the sweep
        (sweep.trials_dir / name / TRIAL_FILE).unlink(missing_ok=True)
    errors: dict[str, str] = {}
    for result in tuner.fit():
        if result.error is not None:
            lines = str(result.error).strip().splitlines()
            errors[result.config["trial"]["name"]] = lines[-1] if lines else repr(result.error)
    records = []
    for name, params in sweep.params.items():
        record = read_trial(sweep.trials_dir / name)
        if record is None and name not in errors:
            raise KeyboardInterrupt  # Tune returns from one as if the trials had ended
        if record is None:  # its driver died
            run_dir = sweep.trials_dir / name
            record = TrialRecord(
                name,
                params,
                FAILED,
                run_dir=str(run_dir),
                workers=read_workers(run_dir),
                error=errors[name],
            )
        records.append(record)
    if all(record.status == FAILED for record in records):
        raise UserError(f"Every trial failed. The first one: {records[0].error}")
    return records


def _trial(config: dict[str, Any]) -> None:
    run_trial(config["trial"])
