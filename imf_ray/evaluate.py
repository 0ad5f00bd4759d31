"""Judges a policy: `python -m imf_ray.evaluate checkpoint=DIR evaluate.num_episodes=100`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imf_ray.allocation import RolloutResources, allocate_rollout_actors
from imf_ray.cli import run
from imf_ray.cluster import init_ray
from imf_ray.errors import UserError
from imf_ray.schema import Config
from imf_ray.storage import display_path, local_dir
from imf_ray.terminal import console

if TYPE_CHECKING:
    from imf_ray.evaluation.candidates import Candidate
    from imf_ray.rollout.records import EpisodeRecord


def main(config: Config, overrides: Sequence[str]) -> None:
    """Roll a policy out on fixed seeds; print its success with its interval, keep its records."""
    from imf_ray.evaluation.candidates import (
        absolute_policy,
        require_settable,
        resolve_candidate,
        select_checkpoint,
        selection_seeds,
    )
    from imf_ray.evaluation.tables import evaluate_with_progress, outcome_table

    require_settable(overrides, "evaluate")
    if config.checkpoint is None:
        raise UserError(
            "Name what to judge: checkpoint=RUN/checkpoint_00001000, checkpoint=expert, "
            "checkpoint=untrained:CHECKPOINT or checkpoint=replay:EPISODES."
        )
    evaluate, home = config.evaluate, local_dir(config.storage_path)
    if evaluate.output_dir is not None:
        evaluate.output_dir = str(local_dir(evaluate.output_dir))
    policy = absolute_policy(config.checkpoint)
    chosen_on = selection_seeds(evaluate)
    if evaluate.checkpoint_selection is None:
        contender = resolve_candidate(
            policy, config, overrides, evaluate.seed, home, evaluate.output_dir
        )
    simulators = allocate_rollout_actors(config, init_ray(config))
    if evaluate.checkpoint_selection is not None:
        best, judged = select_checkpoint(
            Path(policy),
            config,
            overrides,
            lambda c: evaluate_with_progress(c, chosen_on, simulators, console),
        )
        title = f"For the choice, on seeds {chosen_on[0]}-{chosen_on[-1]}"
        console.print(outcome_table(judged, title))
        contender = resolve_candidate(
            str(best), config, overrides, evaluate.seed, home, evaluate.output_dir
        )
    seeds = range(evaluate.seed, evaluate.seed + evaluate.num_episodes)
    records = evaluate_with_progress(contender, seeds, simulators, console)
    _report(contender, records, simulators)


def _report(
    contender: Candidate, records: list[EpisodeRecord], simulators: RolloutResources
) -> None:
    from imf_ray.evaluation.tables import latency, outcome_table
    from imf_ray.rollout.records import summarize

    evaluate, judgement = contender.config.evaluate, contender.judgement
    seeds = [record.seed for record in records]
    console.print(str(summarize(records)), soft_wrap=True)
    title = f"Seeds {seeds[0]}-{seeds[-1]}; success: {records[0].settings['success_description']}"
    console.print(outcome_table([(contender.name, records)], title))
    for record in records:
        if record.error is not None:
            console.print(f"Failed: seed {record.seed}: {record.error}", soft_wrap=True)
    error = _action_error(contender)
    judgement.store.finish(seeds, action_error=error, latency=latency(records))
    if evaluate.video != "none":
        wanted = [r for r in records if evaluate.video == "all" or not r.success]
        grid = judgement.film(wanted, evaluate.max_video_episodes, simulators)
        video = "no such episode" if grid is None else display_path(grid)
        console.print(f"Video: {video}", soft_wrap=True)
    console.print(f"Records: {display_path(judgement.folder)}", soft_wrap=True)


def _action_error(contender: Candidate) -> float | None:
    """The error on the episodes held out of the checkpoint's training, where these are here."""
    from imf_ray.training.trainer import read_held_out
    from imf_ray.training.validation import action_error

    if contender.checkpoint is None:
        return None
    try:
        held_out = read_held_out(contender.checkpoint.parent)
        if not held_out:
            raise UserError("no held-out episodes beside this checkpoint")
        judged = contender.config.evaluate
        error = action_error(
            contender.checkpoint, held_out, judged.use_ema_weights, judged.inference_steps
        )
    except UserError as reason:  # they may have been recorded anew; what was played counts
        console.print(f"action error not known: {reason}", soft_wrap=True)
        return None
    console.print(f"action error {error:.4f} on {len(held_out)} held-out episodes")
    return error


if __name__ == "__main__":
    sys.exit(run("imf_ray.evaluate", main, sys.argv[1:]))
