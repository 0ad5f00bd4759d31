"""Preparation of a sweep: opens its folder, checks every trial, and allocates resources."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imf_ray.allocation import RunResources, allocate_run, max_concurrent_trials
from imf_ray.cluster import ClusterSize
from imf_ray.config import dedupe_overrides, new_run_name, to_override
from imf_ray.errors import UserError, error_source
from imf_ray.schema import Config
from imf_ray.storage import display_path, local_dir, parse_path
from imf_ray.sweep.schedulers import check_scheduler
from imf_ray.sweep.search_space import SearchSpace, load_search_space
from imf_ray.sweep.sweep_dir import SavedSpace, SweepDir
from imf_ray.sweep.trial_record import TrialDir
from imf_ray.training.checkpoint import describe_checkpoints
from imf_ray.training.data_defaults import describe_followed, follow_data
from imf_ray.training.run_dir import RunDir
from imf_ray.training.run_identity import init_or_verify_run_dir
from imf_ray.training.trainer import enable_validation, prepare_run, starting_weights


@dataclass
class Sweep:
    """A sweep whose trials have been checked, except for those that its searcher chooses later."""

    sweep_dir: SweepDir
    space: SearchSpace
    overrides: Sequence[str]
    """Command-line options."""
    started_at: float
    """Time of the first launch in seconds since 1970."""
    is_resumed: bool
    params: dict[str, dict[str, Any]]
    """Values of the varied options of each trial, by name; empty if they are not chosen yet."""
    configs: dict[str, Config] = field(default_factory=dict)
    """Configuration of each trial whose options are chosen, by name."""
    summary: str = ""
    """Lines that describe the data and the length of the first trial."""

    def add_trial(self, name: str, params: dict[str, Any]) -> None:
        """Check the configuration of a trial with these values of the varied options, and add it.

        Raises:
            UserError: the options or the data are invalid, or the trial has another configuration.
        """
        with error_source(f"Trial {name}"):
            compose = functools.partial(self.space.config, self.overrides, params)
            given = compose()
            followed = follow_data(given, compose)
            config = enable_validation(followed)
            run = prepare_run(config)
        init_or_verify_run_dir(run, self.sweep_dir.trial(name))
        starting_weights(config, self.sweep_dir.trial(name))  # an error appears before Ray starts
        self.configs[name], self.params[name] = config, params
        if not self.summary:
            lines = [describe_followed(given, followed), run.describe()]
            self.summary = "\n".join(line for line in lines if line)

    def save(self) -> None:
        """Write `space.json`, from which the sweep resumes."""
        saved = SavedSpace(self.space, list(self.overrides), self.started_at, self.params)
        self.sweep_dir.write_space(saved)

    @property
    def max_steps(self) -> int:
        """Number of updates of the longest trial."""
        return max(config.train.max_steps for config in self.configs.values())

    @property
    def trial_dirs(self) -> dict[str, TrialDir]:
        """Run folder of each trial, by name."""
        return {name: self.sweep_dir.trial(name) for name in self.params}

    @property
    def steps(self) -> dict[RunDir, int]:
        """Number of updates of each trial, by its run folder."""
        return {
            trial_dir: self.configs.get(name, self.first_config).train.max_steps
            for name, trial_dir in self.trial_dirs.items()
        }

    @property
    def first_config(self) -> Config:
        """Configuration of the first trial; the others differ only in the varied options."""
        return next(iter(self.configs.values()))


@contextmanager
def open_sweep(config: Config, overrides: Sequence[str]) -> Iterator[Sweep]:
    """Start a new sweep, or open the one to resume, and check every trial.

    Other writers are excluded while the `with` block runs.

    Args:
        config: configuration of the first trial of a new sweep, from the command line.
        overrides: the command line's `key=value` options. When a sweep is resumed, they override
            its saved options.

    Raises:
        ClaimedError: another process runs the sweep or one of its trials.
        UserError: see `prepare_sweep`.
    """
    storage = local_dir(config.storage_path)
    sweep_dir = None if config.resume is None else find_resumable_sweep(storage, config.run_name)
    saved = None if sweep_dir is None else sweep_dir.read_space()
    if sweep_dir is not None and saved is not None:
        space = saved.space
        overrides = dedupe_overrides([*saved.overrides, *overrides])
        config = space.config(overrides, space.combinations()[0])
    else:
        space = load_search_space(config.search_space)
        name = config.run_name or new_run_name("search_space", space.name)
        sweep_dir = SweepDir(storage / name)
    # An absolute path, since workers have another working directory.
    dataset_dir = to_override("data.dataset_dir", str(parse_path(config.data.dataset_dir)))
    with sweep_dir.claimed():
        yield prepare_sweep(space, dedupe_overrides([*overrides, dataset_dir]), sweep_dir)


def prepare_sweep(space: SearchSpace, overrides: Sequence[str], sweep_dir: SweepDir) -> Sweep:
    """Check every trial of a search space before the first one starts, and write `space.json`.

    Raises:
        UserError: the options of a trial or of the scheduler are invalid, the data are invalid, or
            the folder contains a sweep over another search space.
    """
    sweep_dir.download_state()
    saved = sweep_dir.read_space()
    if saved is not None:
        if saved.space.with_current_names() != space.with_current_names():
            raise UserError(
                f"The sweep {sweep_dir} was started with another search space, {saved.space.name}. "
                "Choose another run_name, or resume the sweep with resume=auto."
            )
        space = saved.space  # the names of trials contain its names of options
    params, started_at = space.trials(), time.time()
    if saved is not None:
        started_at = saved.started_at
        if space.search:
            params |= saved.trials
    sweep = Sweep(sweep_dir, space, overrides, started_at, saved is not None, params)
    for name, values in params.items():
        if values:
            sweep.add_trial(name, values)
    check_scheduler(space.scheduler, sweep.max_steps)
    sweep.save()
    return sweep


def find_resumable_sweep(storage: Path, name: str | None) -> SweepDir | None:
    """Return the sweep of a name or, without a name, the newest sweep with an incomplete trial.

    Returns:
        None if the storage has no sweep of that name, or no incomplete sweep.
    """
    if name is not None:
        sweep_dir = SweepDir(storage / name)
        return None if sweep_dir.read_space() is None else sweep_dir
    newest, newest_start = None, 0.0
    for sweep_dir in SweepDir.find_all(storage):
        saved = sweep_dir.read_space()
        if saved is None or _is_complete(sweep_dir) or saved.started_at <= newest_start:
            continue
        newest, newest_start = sweep_dir, saved.started_at
    return newest


def _is_complete(sweep_dir: SweepDir) -> bool:
    results = sweep_dir.read_results()
    return results is not None and all(record.is_complete for record in results[0])


def describe_sweep(sweep: Sweep, resources: RunResources, concurrent_trials: int) -> str:
    """Describe a sweep that starts: its trials, their data, resources and checkpoints."""
    num_trials, verb = len(sweep.params), "Resuming" if sweep.is_resumed else "Sweep"
    return "\n".join(
        [
            f"{verb} {sweep.sweep_dir}: {num_trials} trials, {concurrent_trials} at a time",
            f"First trial: {sweep.summary}",
            f"Resources of each trial: {resources}",
            describe_checkpoints(sweep.first_config, num_trials),
        ]
    )


def resume_options(sweep: Sweep) -> dict[str, str]:
    """Return the options with which `imf-ray tune` resumes a sweep."""
    options = {
        "resume": "auto",
        "run_name": sweep.sweep_dir.name,
        "storage_path": display_path(sweep.sweep_dir.path.parent),
    }
    address = sweep.first_config.cluster.address
    return options if address is None else {**options, "cluster.address": address}


def allocate_sweep(sweep: Sweep, size: ClusterSize) -> tuple[RunResources, int]:
    """Return the resources of each trial, and the number of trials that run concurrently.

    Raises:
        UserError: the cluster is too small for a single trial.
    """
    concurrent_trials = max_concurrent_trials(sweep.first_config, size, len(sweep.params))
    return allocate_run(sweep.first_config, size, concurrent_trials), concurrent_trials
