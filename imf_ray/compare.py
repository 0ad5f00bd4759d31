"""Compares policies on the same episodes: `python -m imf_ray.compare A B [C ...]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from imf_ray.errors import UserError
from imf_ray.launch import connect, console, run
from imf_ray.places import shown, working_copy
from imf_ray.resources import plan_simulators
from imf_ray.schema import Config


def main(config: Config, overrides: Sequence[str], policies: Sequence[str]) -> None:
    """Judge two or more policies on the same seeds, as far as they were not judged yet, and print
    the table, the exact paired test, the interval of each difference, and how many more episodes
    would separate them.

    A policy is a checkpoint folder, `expert`, `untrained:CHECKPOINT` or `replay:EPISODES`.
    """
    from imf_ray.judging.comparison import compare, comparison_table, write_files
    from imf_ray.judging.contenders import (
        OF_ONE_POLICY,
        enter_all,
        require_settable,
        simulators_of,
    )
    from imf_ray.judging.display import outcome_table, play
    from imf_ray.rollout.store import settings_key

    require_settable(overrides, unused=("checkpoint=", *OF_ONE_POLICY))
    if len(policies) < 2:
        raise UserError("Name two policies or more: python -m imf_ray.compare A B [C ...]")
    home, evaluate = working_copy(config.storage_path), config.evaluate
    contenders = enter_all(policies, config, overrides, home)
    simulators = simulators_of(plan_simulators(config, connect(config)))
    seeds = range(evaluate.seed, evaluate.seed + evaluate.episodes)
    judged = {}
    for contender in contenders:
        judged[contender.name] = play(contender, seeds, simulators, console)
        contender.judgement.store.finish(seeds)
    console.print(outcome_table(list(judged.items()), f"Seeds {seeds[0]}-{seeds[-1]}"))
    asked = {name: judged[name] for name in list(judged)[: len(policies)]}
    comparisons = compare(asked)
    console.print(comparison_table(comparisons))
    sources = {contender.name: shown(contender.judgement.folder) for contender in contenders}
    key = settings_key("", {"records": sorted(sources.values()), "seeds": list(seeds)})
    output = config.compare.output
    folder = home / "comparisons" / key if output is None else working_copy(output)
    for path in write_files(Path(folder), judged, comparisons, sources):
        console.print(shown(path), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(run("imf_ray.compare", main, sys.argv[1:], names="POLICY"))
