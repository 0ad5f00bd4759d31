"""Damages episode files in many ways and checks that each is read unchanged or refused.

    python -m benchmarks.fuzz_episodes --mutations 1040

`testing_support.episode_fuzzer` describes the mutations and their outcomes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.result_log import commit
from testing_support.episode_fuzzer import BAD, GOOD, KINDS, MUTATIONS, fuzz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = fuzz(Path(folder), arguments.mutations, arguments.seed)
    counts = Counter(outcomes)
    headers = (f"{kind}: equal | refused" for kind in KINDS)
    print(f"| mutation | {' | '.join(headers)} |", "|---" * (1 + 2 * len(KINDS)) + "|", sep="\n")
    for mutate in MUTATIONS:
        name = mutate.__name__
        cells = (f"{counts[kind, name, outcome]}" for kind in KINDS for outcome in GOOD)
        print(f"| `{name}` | {' | '.join(cells)} |")
    total = Counter(outcome for _, _, outcome in outcomes)
    bad = {outcome: total[outcome] for outcome in {*BAD, *total} - set(GOOD)}
    print(f"\n{len(outcomes)} files: {dict(total)}; {bad}. Commit {commit()}.")
    if any(bad.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
