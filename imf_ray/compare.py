"""Compares policies on the same episodes: `imf-ray compare A B [C ...]`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from imf_ray.allocation import allocate_rollout_actors
from imf_ray.cli import run_command
from imf_ray.cluster import init_ray
from imf_ray.command import Command
from imf_ray.config import dedupe_overrides
from imf_ray.errors import UserError
from imf_ray.folders import display
from imf_ray.progress_bars import LOADING, activity
from imf_ray.schema import Config
from imf_ray.storage import authoritative_path, display_path, local_dir
from imf_ray.terminal import console

if TYPE_CHECKING:
    from imf_ray.rollout.records import EpisodeRecord


def main(config: Config, overrides: Sequence[str], policies: Sequence[str]) -> str:
    """Compare two or more policies on the same seeds.

    Prints the success rates, with the expert and the first policy untrained as baselines. For each
    pair of policies, prints the p value of McNemar's exact test, the 95 % confidence interval of
    the difference, and an estimate of the episodes that a significant difference still needs.
    Recorded episodes are not repeated.

    POLICY is a checkpoint folder, a run (its best checkpoint), expert, untrained:CHECKPOINT or
    replay:EPISODES.
    """
    from imf_ray.rollout.policy_spec import PolicySpec

    if len(policies) < 2:
        raise UserError(
            f"At least two policies are needed, but {len(policies)} were given. Usage: "
            "imf-ray compare POLICY POLICY ..."
        )
    specs = [PolicySpec.parse(policy).resolve() for policy in policies]
    for spec in specs:  # before the imports below, which take seconds
        spec.check_path(config.storage_path)

    with activity(LOADING):
        from imf_ray.evaluation.candidates import claimed, require_settable, resolve_candidates
        from imf_ray.evaluation.comparison import (
            SIGNIFICANCE,
            compare,
            comparison_table,
            write_comparison,
        )
        from imf_ray.evaluation.tables import evaluate_with_progress, outcome_table
        from imf_ray.pages.report_file import reported_launch
        from imf_ray.rollout.record_store import settings_hash
        from imf_ray.tables import FittedTables

    require_settable(overrides, "compare")
    storage_dir, evaluate = local_dir(config.storage_path), config.evaluate
    with activity("Checking the policies"):
        candidates = resolve_candidates(specs, config, overrides, storage_dir)
    seeds = range(evaluate.seed, evaluate.seed + evaluate.num_episodes)
    records: dict[str, list[EpisodeRecord]] = {}
    record_folders = {
        candidate.name: display_path(candidate.evaluation.folder) for candidate in candidates
    }
    key = settings_hash("", {"records": sorted(record_folders.values()), "seeds": list(seeds)})
    output_dir = config.compare.output_dir
    folder = storage_dir / "comparisons" / key if output_dir is None else local_dir(output_dir)
    with (
        claimed(candidates, "set another evaluate.seed or storage_path"),
        reported_launch(folder, COMMAND.name, [*policies, *overrides], config.report),
    ):
        for candidate in candidates:
            candidate.check_rendering(seeds)
        resources = allocate_rollout_actors(config, init_ray(config))
        for candidate in candidates:
            records[candidate.name] = evaluate_with_progress(candidate, seeds, resources)
            candidate.evaluation.store.finalize(seeds)
        without_baselines = {name: records[name] for name in list(records)[: len(policies)]}
        comparisons = compare(without_baselines)
        outcomes = outcome_table(list(records.items()), f"Seeds {seeds[0]}-{seeds[-1]}")
        console.print(FittedTables(outcomes, comparison_table(comparisons)))
        for path in write_comparison(folder, records, comparisons, record_folders):
            console.print(display_path(path), soft_wrap=True)
    needed = [c.additional_episodes_needed for c in comparisons if c.p_value > SIGNIFICANCE]
    num_episodes = len(seeds) + min(filter(None, needed), default=0)
    if num_episodes > len(seeds):
        options = dedupe_overrides([*overrides, f"evaluate.num_episodes={num_episodes}"])
        return shlex.join(["compare", *policies, *options])
    return f"report {display(authoritative_path(folder))}"


COMMAND = Command(
    "compare",
    main,
    examples=(
        "policies/sim_transfer runs/mine/checkpoint_00006000 evaluate.num_episodes=200",
        "runs/a/checkpoint_00001000 runs/b/checkpoint_00001000 compare.baselines=false",
    ),
    positional="POLICY POLICY ...",
)


if __name__ == "__main__":
    sys.exit(run_command(COMMAND, sys.argv[1:]))
