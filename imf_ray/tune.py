"""Runs a sweep: `python -m imf_ray.tune search_space=quickstart data.dataset_dir=DIR`."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from imf_ray.allocation import RolloutResources, allocate_rollout_actors
from imf_ray.cli import resume_command, run, run_interruptibly
from imf_ray.cluster import init_ray
from imf_ray.errors import UserError
from imf_ray.schema import Config
from imf_ray.storage import display_path, local_dir, parse_path
from imf_ray.terminal import console

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
    from imf_ray.config import dedupe_overrides
    from imf_ray.rollout.policies import EXPERT
    from imf_ray.sweep.results import UNTRAINED_NAME, failures, rank, results_table, write_files
    from imf_ray.sweep.runner import (
        allocate_sweep,
        evaluate_expert,
        evaluate_untrained,
        find_resumable_sweep,
        load_saved_space,
        prepare_sweep,
        run_sweep,
        safe_to_kill_sweep,
        stop_sweep,
    )
    from imf_ray.sweep.search_space import load_search_space
    from imf_ray.sweep.trial import FAILED
    from imf_ray.training.progress import RunProgress, format_metrics
    from imf_ray.training.tracking import describe_tracking

    storage = local_dir(config.storage_path)
    resumed = None if config.resume is None else find_resumable_sweep(storage, config.run_name)
    if resumed is not None:
        space, before = load_saved_space(resumed)
        overrides = dedupe_overrides([*before, *overrides])
        config = space.config(overrides, space.combinations()[0])
        name = resumed.name
    else:
        space = load_search_space(config.search_space)
        name = config.run_name or f"{space.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    dataset_dir = f"data.dataset_dir={parse_path(config.data.dataset_dir)}"
    overrides = dedupe_overrides([*overrides, dataset_dir])
    sweep_dir = storage / name
    sweep = prepare_sweep(space, overrides, sweep_dir)
    size = init_ray(config)
    resources, slots = allocate_sweep(sweep, size)
    console.print(
        f"{'Going on with' if resumed else 'Sweep'} {display_path(sweep_dir)}: {len(sweep.configs)} "
        f"trials, {slots} at a time\nThe first: {sweep.described}\nEach takes {resources}",
        soft_wrap=True,
    )
    console.print(describe_tracking(sweep.first_config))
    expert = evaluate_expert(sweep, resources)
    console.print(f"Expert: {format_metrics(expert)}", soft_wrap=True)
    options = {"resume": "auto", "run_name": name, "storage_path": display_path(storage)}
    if config.cluster.address is not None:
        options["cluster.address"] = config.cluster.address
    resume = resume_command("imf_ray.tune", [], **options)
    runs = {sweep.run_dir(name): trial.train.max_steps for name, trial in sweep.configs.items()}
    with RunProgress(runs, console):
        records = run_interruptibly(
            lambda: run_sweep(sweep, resources, slots),
            request_stop=lambda: stop_sweep(sweep),
            is_safe=lambda: safe_to_kill_sweep(sweep),
            resume=resume,
        )
    best = rank(records)[0]
    untrained = evaluate_untrained(sweep, resources, best)
    baselines = {EXPERT: expert, UNTRAINED_NAME: untrained}
    files = write_files(sweep_dir, records, baselines, space)
    console.print(results_table(records, baselines))
    for line in failures(records):
        console.print(f"Failed: {line}", soft_wrap=True)
    console.print(f"Best checkpoint: {best.best_checkpoint}", soft_wrap=True)
    one_actor = dataclasses.replace(allocate_rollout_actors(config, size), num_actors=1)
    played = sweep.configs[best.name]
    videos = _write_videos(sweep_dir, played, str(best.best_checkpoint), one_actor)
    for path in [*files, *videos]:
        console.print(display_path(path), soft_wrap=True)
    failed = sum(record.status == FAILED for record in records)
    if failed:
        raise UserError(
            f"{failed} of {len(records)} trials failed, see above. Try them again with:\n  {resume}"
        )


def _write_videos(
    sweep_dir: Path, config: Config, checkpoint: str, rollout: RolloutResources
) -> list[Path]:
    """The expert and the best policy, which is of that configuration, on its first seed."""
    from imf_ray.files import write_atomically
    from imf_ray.rollout.actor_pool import RolloutSpec, run_episodes
    from imf_ray.rollout.artifacts import VIDEO, ArtifactRequest
    from imf_ray.rollout.policies import EXPERT
    from imf_ray.rollout.rollout_config import agent_rollout_config, scripted_rollout_config

    seed = config.train.rollout_seed
    jobs = {
        "expert": RolloutSpec(EXPERT, scripted_rollout_config(config.task)),
        "best": RolloutSpec(checkpoint, agent_rollout_config(config, noise_seed=seed)),
    }
    paths = []
    for name, job in jobs.items():
        path = sweep_dir / VIDEO_FILES[name]
        for episode in run_episodes(job, [seed], rollout, {seed: ArtifactRequest(video=True)}):
            if VIDEO in episode.files:  # or it ended in an error
                write_atomically(path, episode.files[VIDEO])
                paths.append(path)
    return paths


if __name__ == "__main__":
    sys.exit(run("imf_ray.tune", main, sys.argv[1:], resolve=resolve))
