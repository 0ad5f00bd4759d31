"""Evaluates a policy: `imf-ray evaluate checkpoint=DIR evaluate.num_episodes=100`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from imf_ray.allocation import RolloutResources, allocate_rollout_actors
from imf_ray.cli import run_command
from imf_ray.cluster import init_ray
from imf_ray.command import Command
from imf_ray.errors import UserError
from imf_ray.schema import Config
from imf_ray.storage import display_path, local_dir
from imf_ray.terminal import console

if TYPE_CHECKING:
    from imf_ray.evaluation.candidates import Candidate
    from imf_ray.rollout.records import EpisodeRecord


def main(config: Config, overrides: Sequence[str]) -> None:
    """Roll out one policy on consecutive seeds; print its success rate and confidence interval.

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
    policy = PolicySpec.parse(config.checkpoint).resolve()
    is_run = config.evaluate.checkpoint_selection is not None
    policy.check_path(config.storage_path, is_run)  # before the imports below, which take seconds

    from imf_ray.evaluation import candidates
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
    candidate = candidates.resolve_candidate(
        policy, config, overrides, evaluate.seed, local_dir(config.storage_path), output_dir
    )
    seeds = range(evaluate.seed, evaluate.seed + evaluate.num_episodes)
    report = reported_launch(candidate.evaluation.folder, COMMAND.name, overrides, config.report)
    with candidate.evaluation.store.claimed(), report:
        candidate.check_rendering(seeds)
        _report(candidate, evaluate_with_progress(candidate, seeds, actors()), actors())


def _report(candidate: Candidate, records: list[EpisodeRecord], actors: RolloutResources) -> None:
    """Print the results of an evaluation and write its summary and video."""
    from imf_ray.evaluation.tables import latency, outcome_table, report_action_error
    from imf_ray.rollout.records import summarize

    evaluate, evaluation = candidate.config.evaluate, candidate.evaluation
    seeds = [record.seed for record in records]
    console.print(str(summarize(records)), soft_wrap=True)
    title = (
        f"Seeds {seeds[0]}-{seeds[-1]}; success means: {records[0].settings['success_description']}"
    )
    console.print(outcome_table([(candidate.name, records)], title))
    for record in (record for record in records if record.error is not None):
        console.print(f"Error on seed {record.seed}: {record.error}", soft_wrap=True)
    action_error = report_action_error(candidate)
    evaluation.store.finalize(seeds, action_error=action_error, latency=latency(records))
    if evaluate.video != "none":
        requested = [r for r in records if evaluate.video == "all" or not r.success]
        path = evaluation.record_grid_video(requested, evaluate.max_video_episodes, actors)
        reason = f"none, because no episode matches evaluate.video={evaluate.video}"
        video = reason if path is None else display_path(path)
        console.print(f"Video: {video}", soft_wrap=True)
    console.print(f"Records: {display_path(evaluation.folder)}", soft_wrap=True)


COMMAND = Command(
    "evaluate",
    main,
    examples=(
        "checkpoint=policies/sim_transfer evaluate.num_episodes=100",
        "checkpoint=runs/transfer evaluate.checkpoint_selection=best-of-run",
    ),
)


if __name__ == "__main__":
    sys.exit(run_command(COMMAND, sys.argv[1:]))
