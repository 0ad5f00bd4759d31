"""Runs a sweep: `python -m imf_ray.tune search_space=quickstart data.dataset_dir=DIR`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imf_ray.errors import UserError
from imf_ray.launch import connect, console, interruptible, resume_command, run
from imf_ray.places import place, shown, working_copy
from imf_ray.resources import plan_simulators
from imf_ray.schema import Config

VIDEO_FILES = {"expert": "expert.mp4", "best": "best.mp4"}


def resolve(overrides: Sequence[str]) -> Config:
    """The configuration of the sweep's first trial."""
    from imf_ray.sweep.search_space import load_search_space

    named = [o.partition("=")[2] for o in overrides if o.startswith("search_space=")]
    space = load_search_space(named[-1] if named else Config.search_space)
    return space.config(overrides, space.combinations()[0])


def main(config: Config, overrides: Sequence[str]) -> None:
    """Train and judge every combination of a search space, and print the ranked table.

    Ends with an error if a trial failed.
    """
    from imf_ray.config import last_of_each
    from imf_ray.rollout.policies import EXPERT
    from imf_ray.sweep.runner import (
        find_sweep,
        is_stopped,
        judge_expert,
        judge_untrained,
        plan_sweep,
        prepare_sweep,
        read_space,
        run_sweep,
        stop_sweep,
    )
    from imf_ray.sweep.search_space import load_search_space
    from imf_ray.sweep.table import UNTRAINED_ROW, failures, make_table, rank, write_files
    from imf_ray.sweep.trial import FAILED
    from imf_ray.training.progress import ProgressBoard, describe_metrics
    from imf_ray.training.tracking import describe_tracking

    storage = working_copy(config.storage_path)
    resumed = None if config.resume is None else find_sweep(storage, config.run_name)
    if resumed is not None:
        space, before = read_space(resumed)
        overrides = last_of_each([*before, *overrides])
        config = space.config(overrides, space.combinations()[0])
        name = resumed.name
    else:
        space = load_search_space(config.search_space)
        name = config.run_name or f"{space.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    dataset_dir = f"data.dataset_dir={place(config.data.dataset_dir)}"
    overrides = last_of_each([*overrides, dataset_dir])
    sweep_dir = storage / name
    sweep = prepare_sweep(space, overrides, sweep_dir)
    size = connect(config)
    resources, slots = plan_sweep(sweep, size)
    console.print(
        f"{'Going on with' if resumed else 'Sweep'} {shown(sweep_dir)}: {len(sweep.configs)} "
        f"trials, {slots} at a time\nThe first: {sweep.described}\nEach takes {resources}",
        soft_wrap=True,
    )
    console.print(describe_tracking(sweep.first_config))
    expert = judge_expert(sweep, resources)
    console.print(f"Expert: {describe_metrics(expert)}", soft_wrap=True)
    options = {"resume": "auto", "run_name": name, "storage_path": shown(storage)}
    if config.cluster.address is not None:
        options["cluster.address"] = config.cluster.address
    resume = resume_command("imf_ray.tune", [], **options)
    runs = {sweep.run_dir(name): trial.train.max_steps for name, trial in sweep.configs.items()}
    with ProgressBoard(runs, console):
        records = interruptible(
            lambda: run_sweep(sweep, resources, slots),
            request_stop=lambda: stop_sweep(sweep),
            is_safe=lambda: is_stopped(sweep),
            resume=resume,
        )
    best = rank(records)[0]
    untrained = judge_untrained(sweep, resources, best)
    oracles = {EXPERT: expert, UNTRAINED_ROW: untrained}
    files = write_files(sweep_dir, records, oracles, space)
    console.print(make_table(records, oracles))
    for line in failures(records):
        console.print(f"Failed: {line}", soft_wrap=True)
    console.print(f"Best checkpoint: {best.best_checkpoint}", soft_wrap=True)
    simulators = plan_simulators(config, size)
    played = sweep.configs[best.name]
    videos = _write_videos(sweep_dir, played, str(best.best_checkpoint), simulators.options)
    for path in [*files, *videos]:
        console.print(shown(path), soft_wrap=True)
    failed = sum(record.status == FAILED for record in records)
    if failed:
        raise UserError(
            f"{failed} of {len(records)} trials failed, see above. Try them again with:\n  {resume}"
        )


def _write_videos(
    sweep_dir: Path, config: Config, checkpoint: str, options: Mapping[str, Any]
) -> list[Path]:
    """The expert and the best policy, which is of that configuration, on its first seed."""
    from imf_ray.files import write_atomically
    from imf_ray.rollout.actors import RolloutJob, run_episodes
    from imf_ray.rollout.artifacts import VIDEO, Keep
    from imf_ray.rollout.policies import EXPERT
    from imf_ray.rollout.settings import agent_settings, scripted_settings

    seed = config.train.rollout_seed
    jobs = {
        "expert": RolloutJob(EXPERT, scripted_settings(config.task)),
        "best": RolloutJob(checkpoint, agent_settings(config, noise_seed=seed)),
    }
    paths = []
    for name, job in jobs.items():
        path = sweep_dir / VIDEO_FILES[name]
        for episode in run_episodes(job, [seed], 1, options, {seed: Keep(video=True)}):
            if VIDEO in episode.files:  # or it ended in an error
                write_atomically(path, episode.files[VIDEO])
                paths.append(path)
    return paths


if __name__ == "__main__":
    sys.exit(run("imf_ray.tune", main, sys.argv[1:], resolve=resolve))
