"""Compares policies on the same episodes: `python -m imf_ray.compare A B [C ...]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from imf_ray.allocation import allocate_rollout_actors
from imf_ray.cli import run
from imf_ray.cluster import init_ray
from imf_ray.errors import UserError
from imf_ray.schema import Config
from imf_ray.storage import display_path, local_dir
from imf_ray.terminal import console


def main(config: Config, overrides: Sequence[str], policies: Sequence[str]) -> None:
    """Judge two or more policies on the same seeds, as far as they were not judged yet, and print
    the table, the exact paired test, the interval of each difference, and how many more episodes
    would separate them.

    A policy is a checkpoint folder, `expert`, `untrained:CHECKPOINT` or `replay:EPISODES`.
    """
    from imf_ray.evaluation.candidates import (
        require_settable,
        resolve_candidates,
    )
    from imf_ray.evaluation.comparison import compare, comparison_table, write_files
    from imf_ray.evaluation.tables import evaluate_with_progress, outcome_table
    from imf_ray.rollout.record_store import settings_hash

    require_settable(overrides, "compare")
    if len(policies) < 2:
        raise UserError("Name two policies or more: python -m imf_ray.compare A B [C ...]")
    home, evaluate = local_dir(config.storage_path), config.evaluate
    contenders = resolve_candidates(policies, config, overrides, home)
    simulators = allocate_rollout_actors(config, init_ray(config))
    seeds = range(evaluate.seed, evaluate.seed + evaluate.num_episodes)
    judged = {}
    for contender in contenders:
        judged[contender.name] = evaluate_with_progress(contender, seeds, simulators, console)
        contender.judgement.store.finish(seeds)
    console.print(outcome_table(list(judged.items()), f"Seeds {seeds[0]}-{seeds[-1]}"))
    asked = {name: judged[name] for name in list(judged)[: len(policies)]}
    comparisons = compare(asked)
    console.print(comparison_table(comparisons))
    sources = {contender.name: display_path(contender.judgement.folder) for contender in contenders}
    key = settings_hash("", {"records": sorted(sources.values()), "seeds": list(seeds)})
    output = config.compare.output_dir
    folder = home / "comparisons" / key if output is None else local_dir(output)
    for path in write_files(Path(folder), judged, comparisons, sources):
        console.print(display_path(path), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(run("imf_ray.compare", main, sys.argv[1:], names="POLICY"))
