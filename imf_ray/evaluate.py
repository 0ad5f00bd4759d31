"""Evaluates a policy: `imf-ray evaluate checkpoint=DIR evaluate.num_episodes=100`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

from imf_ray.allocation import RolloutResources, allocate_rollout_actors
from imf_ray.cli import run_command
from imf_ray.cluster import init_ray
from imf_ray.command import Command
from imf_ray.errors import UserError
from imf_ray.progress_bars import LOADING, activity
from imf_ray.schema import Config
from imf_ray.storage import local_dir
from imf_ray.terminal import console


def main(config: Config, overrides: Sequence[str]) -> str:
    """Roll out one policy on consecutive seeds; print its success rate and confidence interval.

    POLICY is a checkpoint folder, a run (its best checkpoint), expert, untrained:CHECKPOINT or
    replay:EPISODES. checkpoint=POLICY is the same.
    The first seed is evaluate.seed, and the interval is Wilson's at 95 %. The policy's options come
    from its checkpoint. Episodes that are already recorded are not repeated.

    With evaluate.checkpoint_selection=best-of-run, the command first compares all checkpoints of a
    run on other seeds, and then evaluates the best one.
    """
    from imf_ray.rollout.policy_spec import PolicyKind, PolicySpec

    if config.checkpoint is None:
        raise UserError(
            "checkpoint is not set. Use checkpoint=DIR (a checkpoint folder), checkpoint=expert "
            "(the scripted expert), checkpoint=untrained:DIR (its agent with untrained weights) or "
            "checkpoint=replay:PATH (recorded episodes)."
        )
    is_run = config.evaluate.checkpoint_selection is not None
    policy = PolicySpec.parse(config.checkpoint).resolve(is_run)
    policy.check_path(config.storage_path, is_run)  # before the imports below, which take seconds

    with activity(LOADING):
        from imf_ray.evaluation import candidates
        from imf_ray.evaluation.results import next_command, report_evaluation
        from imf_ray.evaluation.tables import evaluate_with_progress, outcome_table
        from imf_ray.pages.report_file import reported_launch

    candidates.require_settable(overrides, "evaluate")
    evaluate = config.evaluate
    output_dir = None if evaluate.output_dir is None else str(local_dir(evaluate.output_dir))
    selection = candidates.selection_seeds(evaluate)
    if evaluate.checkpoint_selection is not None and policy.kind != PolicyKind.CHECKPOINT:
        raise UserError(
            f"evaluate.checkpoint_selection={evaluate.checkpoint_selection} needs the folder of a "
            f"run as checkpoint, but it is {policy}: set evaluate.checkpoint_selection=null."
        )

    @functools.cache
    def actors() -> RolloutResources:
        return allocate_rollout_actors(config, init_ray(config))

    # Ray starts only after every policy was checked and its records folder is claimed.
    if evaluate.checkpoint_selection is not None:
        best, results = candidates.select_checkpoint(
            policy.local_path,
            config,
            overrides,
            lambda candidate: evaluate_with_progress(candidate, selection, actors()),
        )
        title = f"Checkpoint selection on seeds {selection[0]}-{selection[-1]}"
        console.print(outcome_table(results, title))
        policy = PolicySpec(PolicyKind.CHECKPOINT, str(best))
    with activity(f"Checking {policy.short_name}"):
        candidate = candidates.resolve_candidate(
            policy, config, overrides, evaluate.seed, local_dir(config.storage_path), output_dir
        )
    seeds = range(evaluate.seed, evaluate.seed + evaluate.num_episodes)
    report = reported_launch(candidate.evaluation.folder, COMMAND.name, overrides, config.report)
    with candidate.evaluation.store.claimed(), report:
        candidate.check_rendering(seeds)
        num_videos = 0 if evaluate.video == "none" else evaluate.max_video_episodes
        records = evaluate_with_progress(candidate, seeds, actors(), num_videos)
        report_evaluation(candidate, records, actors())
    return next_command(candidate, records)


COMMAND = Command(
    "evaluate",
    main,
    examples=(
        "policies/sim_transfer evaluate.num_episodes=100",
        "runs/transfer evaluate.checkpoint_selection=best-of-run",
    ),
    positional="POLICY",
    argument_option="checkpoint",
)


if __name__ == "__main__":
    sys.exit(run_command(COMMAND, sys.argv[1:]))
