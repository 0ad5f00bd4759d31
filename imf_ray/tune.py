"""Runs a sweep: `imf-ray tune search_space=quickstart data.dataset_dir=DIR`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from imf_ray.allocation import allocate_rollout_actors
from imf_ray.cli import resume_command, run_command
from imf_ray.cluster import init_ray
from imf_ray.command import Command
from imf_ray.errors import UserError
from imf_ray.interrupts import run_interruptibly
from imf_ray.pages.background import board_while_running
from imf_ray.progress_bars import LOADING, activity
from imf_ray.schema import Config
from imf_ray.storage import display_path
from imf_ray.terminal import console


def resolve(overrides: Sequence[str]) -> Config:
    """Return the configuration of the sweep's first trial.

    The search space sets its values first; the overrides apply on top.
    """
    from imf_ray.sweep.search_space import load_search_space

    names = [item.partition("=")[2] for item in overrides if item.startswith("search_space=")]
    space = load_search_space(names[-1] if names else Config.search_space)
    return space.config(overrides, space.combinations()[0])


def main(config: Config, overrides: Sequence[str]) -> str:
    """Train and evaluate every trial of a search space, and print the ranked table.

    SEARCH_SPACE is the name of a file in search_spaces/ or the path of a YAML file.
    search_space=SEARCH_SPACE is the same.
    As many trials run concurrently as the cluster has resources for. The table also contains the
    scripted expert and an untrained policy. Ctrl-C stops after one more checkpoint of each running
    trial and prints the command that resumes the sweep.

    Raises:
        UserError: the sweep cannot start, or a trial failed.
    """
    with activity(LOADING):
        from imf_ray.pages.report_file import reported_launch
        from imf_ray.pages.sweep_progress import SweepProgress
        from imf_ray.sweep import prepare, results
        from imf_ray.sweep.baselines import evaluate_expert, evaluate_untrained, record_videos
        from imf_ray.sweep.runner import run_sweep, safe_to_kill_sweep, stop_sweep
        from imf_ray.training.progress import format_metrics
        from imf_ray.training.tracking import describe_tracking

    with (
        prepare.open_sweep(config, overrides) as sweep,
        board_while_running(sweep.first_config, sweep.sweep_dir.path),
        reported_launch(sweep.sweep_dir.path, COMMAND.name, overrides, config.report),
    ):
        config, sweep_dir = sweep.first_config, sweep.sweep_dir
        size = init_ray(config)
        resources, concurrent_trials = prepare.allocate_sweep(sweep, size)
        console.print(prepare.describe_sweep(sweep, resources, concurrent_trials), soft_wrap=True)
        for line in describe_tracking(config, sweep_dir, is_sweep=True):
            console.print(line, soft_wrap=True, markup=False)
        with activity("Evaluating the expert"):
            expert = evaluate_expert(sweep, resources.rollout)
        expert_text = format_metrics(expert) or "none for this task"
        console.print(f"Expert: {expert_text}", soft_wrap=True)
        resume = resume_command("imf_ray.tune", [], **prepare.resume_options(sweep))
        with SweepProgress(sweep_dir, sweep.steps, console):
            records = run_interruptibly(
                lambda: run_sweep(sweep, resources, concurrent_trials),
                request_stop=lambda: stop_sweep(sweep),
                is_safe=lambda: safe_to_kill_sweep(sweep),
                resume=resume,
            )
        best = results.rank(records)[0]
        with activity("Evaluating an untrained agent"):
            untrained = evaluate_untrained(sweep, resources.rollout, best)
        baselines = {results.EXPERT_NAME: expert, results.UNTRAINED_NAME: untrained}
        files = results.write_results(sweep_dir, records, baselines, sweep.space)
        console.print(results.results_table(records, baselines))
        for line in results.failure_lines(records):
            console.print(f"Failed trial: {line}", soft_wrap=True)
        console.print(f"Best checkpoint: {best.best_checkpoint}", soft_wrap=True)
        with activity("Recording videos of the expert and of the best trial"):
            videos = record_videos(sweep, best, allocate_rollout_actors(config, size))
        for path in [*files, *videos]:
            console.print(display_path(path), soft_wrap=True)
        for line in describe_tracking(config, sweep_dir, is_sweep=True):
            console.print(line, soft_wrap=True, markup=False)
        failed = results.failed_trials(records)
        if failed:
            raise UserError(
                f"{len(failed)} of {len(records)} trials failed (see above). Retry them with:\n"
                f"  {resume}"
            )
    checkpoint = "POLICY" if best.best_checkpoint is None else shlex.quote(best.best_checkpoint)
    return f"evaluate {checkpoint} evaluate.num_episodes=100 evaluate.video=failures"


COMMAND = Command(
    "tune",
    main,
    examples=(
        "quickstart data.dataset_dir=data/cpu_transfer run_name=sweep",
        "resume=auto run_name=sweep",
    ),
    resolve=resolve,
    positional="[SEARCH_SPACE]",
    argument_option="search_space",
)


if __name__ == "__main__":
    sys.exit(run_command(COMMAND, sys.argv[1:]))
