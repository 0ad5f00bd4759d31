"""Compares policies on the same episodes: a paired test, the interval of the difference, a plot."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from imf_ray.files import write_atomically, write_figure
from imf_ray.rollout.confidence_intervals import (
    difference_interval,
    holm_adjust,
    pair_outcomes,
    paired_p_value,
    required_sample_size,
)
from imf_ray.rollout.records import EpisodeRecord, summarize

COMPARISON_FILE, PLOT_FILE = "comparison.json", "comparison.png"
SIGNIFICANCE = 0.05
RecordsByPolicy = Mapping[str, Sequence[EpisodeRecord]]


@dataclass(frozen=True)
class Comparison:
    """Two policies on the same episodes."""

    a: str
    b: str
    episodes: int
    only_a: int
    """Episodes on which only A succeeded."""
    only_b: int
    """Episodes on which only B succeeded."""
    difference: float
    """Success rate of A minus that of B."""
    low: float
    high: float
    """Bounds of the 95 % interval of the difference (Bonett and Price, 2012)."""
    p_value: float
    """p value of the exact McNemar test, adjusted for the number of comparisons (Holm)."""
    additional_episodes_needed: int | None
    """Further episodes after which a difference of this size is found significant four times in
    five; None if there is no difference."""

    @property
    def verdict(self) -> str:
        """The result in words."""
        if self.p_value <= SIGNIFICANCE:
            return f"{self.a if self.difference > 0 else self.b} is better"
        if self.additional_episodes_needed is None:
            return "no difference seen"
        return f"not separated; needs about {self.additional_episodes_needed} more episodes"


def compare(records_by_policy: RecordsByPolicy) -> list[Comparison]:
    """Compare every pair of policies on the seeds that both have.

    Raises:
        ValueError: two policies have no seed in common.
    """
    results = []
    pairs_of_policies = list(itertools.combinations(records_by_policy, 2))
    for a, b in pairs_of_policies:
        outcomes_b = {record.seed: record.success for record in records_by_policy[b]}
        common = [record for record in records_by_policy[a] if record.seed in outcomes_b]
        pairs = pair_outcomes(
            [record.success for record in common], [outcomes_b[record.seed] for record in common]
        )
        needed = required_sample_size(pairs, comparisons=len(pairs_of_policies))
        low, high = difference_interval(pairs)
        results.append((a, b, pairs, low, high, paired_p_value(pairs), needed))
    adjusted = holm_adjust([entry[5] for entry in results])
    return [
        Comparison(
            a,
            b,
            *pairs,
            difference=pairs.difference,
            low=low,
            high=high,
            p_value=p_value,
            additional_episodes_needed=None if needed is None else max(0, needed - pairs.episodes),
        )
        for (a, b, pairs, low, high, _, needed), p_value in zip(results, adjusted, strict=True)
    ]


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Make a table with one row per pair."""
    title = "Paired on the same seeds (exact McNemar test, p adjusted by Holm)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for column in ("A", "B", "A - B", "95 %", "only A", "only B", "p", "verdict"):
        table.add_column(column)
    for c in comparisons:
        table.add_row(
            c.a,
            c.b,
            f"{c.difference:+.2f}",
            f"[{c.low:+.2f}, {c.high:+.2f}]",
            str(c.only_a),
            str(c.only_b),
            f"{c.p_value:.3g}",
            c.verdict,
        )
    return table


def write_files(
    folder: Path,
    records_by_policy: RecordsByPolicy,
    comparisons: Sequence[Comparison],
    sources: Mapping[str, str],
) -> list[Path]:
    """Write `comparison.json` and `comparison.png`; return their paths.

    Args:
        sources: the folder of each policy's records.
    """
    content = {
        "policies": {
            name: {
                **summarize(records).metrics(),
                "records": sources[name],
                "policy": records[0].policy,
                "settings": records[0].settings,
            }
            for name, records in records_by_policy.items()
        },
        "comparisons": [asdict(c) | {"verdict": c.verdict} for c in comparisons],
        "seeds": sorted(
            {record.seed for records in records_by_policy.values() for record in records}
        ),
    }
    write_atomically(folder / COMPARISON_FILE, json.dumps(content, indent=1))
    plot_comparison(folder / PLOT_FILE, records_by_policy, comparisons)
    return [folder / COMPARISON_FILE, folder / PLOT_FILE]


def plot_comparison(
    path: Path, records_by_policy: RecordsByPolicy, comparisons: Sequence[Comparison]
) -> None:
    """Plot success rates and differences with their intervals, and the stages reached."""
    from matplotlib.figure import Figure

    height = 1.6 + 0.4 * max(len(records_by_policy), len(comparisons))
    figure = Figure(figsize=(15, height), layout="constrained")
    rates, differences, stages = figure.subplots(1, 3)
    for row, records in enumerate(records_by_policy.values()):
        s = summarize(records)
        rates.plot([s.success_ci_low, s.success_ci_high], [row, row], color="tab:blue", linewidth=2)
        rates.plot([s.success_rate], [row], "o", color="tab:blue")
        shares = {0: 1.0, **s.stage_shares}
        stages.plot(list(shares), list(shares.values()), marker="o")
    rates.set_yticks(range(len(records_by_policy)), list(records_by_policy))
    rates.set_xlim(0, 1)
    rates.set_title(
        f"success rate, n = {min(len(records) for records in records_by_policy.values())}, 95 %"
    )
    stages.legend(list(records_by_policy), fontsize="small")
    stages.set_title("share of episodes that reached a stage")
    for row, c in enumerate(comparisons):
        color = "tab:red" if c.p_value <= SIGNIFICANCE else "tab:gray"
        differences.plot([c.low, c.high], [row, row], color=color, linewidth=2)
        differences.plot([c.difference], [row], "o", color=color)
    names = [f"{c.a}\n- {c.b}" for c in comparisons]
    differences.set_yticks(range(len(names)), names, fontsize="small")
    differences.axvline(0.0, color="black", linewidth=0.8)
    differences.set_title(f"difference of success, 95 % (red: p <= {SIGNIFICANCE})")
    for axes in (rates, differences):
        axes.invert_yaxis()
    write_figure(path, figure)
