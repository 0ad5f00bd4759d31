"""Judges a policy: `python -m imf_ray.evaluate checkpoint=DIR evaluate.episodes=100`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imf_ray.errors import UserError
from imf_ray.launch import connect, console, run
from imf_ray.places import shown, working_copy
from imf_ray.resources import plan_simulators
from imf_ray.schema import Config

if TYPE_CHECKING:
    from imf_ray.judging.contenders import Contender
    from imf_ray.rollout.judgement import Simulators
    from imf_ray.rollout.records import EpisodeRecord


def main(config: Config, overrides: Sequence[str]) -> None:
    """Roll a policy out on fixed seeds; print its success with its interval, keep its records."""
    from imf_ray.judging.contenders import (
        absolute_policy,
        choose_checkpoint,
        enter,
        require_settable,
        selection_seeds,
        simulators_of,
    )
    from imf_ray.judging.display import outcome_table, play

    require_settable(overrides, unused=("compare.",))
    if config.checkpoint is None:
        raise UserError(
            "Name what to judge: checkpoint=RUN/checkpoint_00001000, checkpoint=expert, "
            "checkpoint=untrained:CHECKPOINT or checkpoint=replay:EPISODES."
        )
    evaluate, home = config.evaluate, working_copy(config.storage_path)
    if evaluate.output is not None:
        evaluate.output = str(working_copy(evaluate.output))
    policy = absolute_policy(config.checkpoint)
    chosen_on = selection_seeds(evaluate)
    if evaluate.select is None:
        contender = enter(policy, config, overrides, evaluate.seed, home, evaluate.output)
    simulators = simulators_of(plan_simulators(config, connect(config)))
    if evaluate.select is not None:
        best, judged = choose_checkpoint(
            Path(policy), config, overrides, lambda c: play(c, chosen_on, simulators, console)
        )
        title = f"For the choice, on seeds {chosen_on[0]}-{chosen_on[-1]}"
        console.print(outcome_table(judged, title))
        contender = enter(str(best), config, overrides, evaluate.seed, home, evaluate.output)
    seeds = range(evaluate.seed, evaluate.seed + evaluate.episodes)
    records = play(contender, seeds, simulators, console)
    _report(contender, records, simulators)


def _report(contender: Contender, records: list[EpisodeRecord], simulators: Simulators) -> None:
    from imf_ray.judging.display import latency, outcome_table
    from imf_ray.rollout.records import summarize

    evaluate, judgement = contender.config.evaluate, contender.judgement
    seeds = [record.seed for record in records]
    console.print(str(summarize(records)), soft_wrap=True)
    title = f"Seeds {seeds[0]}-{seeds[-1]}; success: {records[0].settings['success_rule']}"
    console.print(outcome_table([(contender.name, records)], title))
    for record in records:
        if record.error is not None:
            console.print(f"Failed: seed {record.seed}: {record.error}", soft_wrap=True)
    error = _action_error(contender)
    judgement.store.finish(seeds, action_error=error, latency=latency(records))
    if evaluate.video != "none":
        wanted = [r for r in records if evaluate.video == "all" or not r.success]
        grid = judgement.film(wanted, evaluate.video_episodes, simulators)
        video = "no such episode" if grid is None else shown(grid)
        console.print(f"Video: {video}", soft_wrap=True)
    console.print(f"Records: {shown(judgement.folder)}", soft_wrap=True)


def _action_error(contender: Contender) -> float | None:
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
        error = action_error(contender.checkpoint, held_out, judged.ema, judged.inference_steps)
    except UserError as reason:  # they may have been recorded anew; what was played counts
        console.print(f"action error not known: {reason}", soft_wrap=True)
        return None
    console.print(f"action error {error:.4f} on {len(held_out)} held-out episodes")
    return error


if __name__ == "__main__":
    sys.exit(run("imf_ray.evaluate", main, sys.argv[1:]))
