"""Compares policies that ran the same episodes (the same seeds).

Each pair of policies gets an exact paired test (McNemar), a 95 % confidence interval of the
difference of success rates, and a row of the comparison table and of the plot.
"""

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
    PairedOutcomes,
    difference_interval,
    holm_adjust,
    pair_outcomes,
    paired_p_value,
    required_sample_size,
)
from imf_ray.rollout.records import EpisodeRecord, summarize

COMPARISON_FILE, PLOT_FILE = "comparison.json", "comparison.png"
SIGNIFICANCE = 0.05
"""Largest adjusted p value at which a difference is called significant."""
RecordsByPolicy = Mapping[str, Sequence[EpisodeRecord]]


@dataclass(frozen=True)
class Comparison:
    """The result of comparing the policies A and B on the same episodes."""

    a: str
    b: str
    episodes: int
    only_a: int
    """Number of episodes on which only A succeeded."""
    only_b: int
    """Number of episodes on which only B succeeded."""
    difference: float
    """Success rate of A minus that of B."""
    low: float
    high: float
    """95 % confidence interval of `difference` (Bonett and Price, 2012). It is not adjusted for the
    number of comparisons."""
    p_value: float
    """p value of the exact McNemar test, adjusted for the number of comparisons (Holm)."""
    additional_episodes_needed: int | None
    """Number of further episodes for 80 % power, if the true difference equals the observed one;
    None if the observed difference is 0."""

    @property
    def verdict(self) -> str:
        """The result in words, such as 'A is better'."""
        if self.p_value <= SIGNIFICANCE:
            return f"{self.a if self.difference > 0 else self.b} is better"
        if self.additional_episodes_needed is None:
            return "equal success rates"
        return f"not significant; about {self.additional_episodes_needed} more episodes needed"


def compare(records_by_policy: RecordsByPolicy) -> list[Comparison]:
    """Compare every pair of policies on the seeds that both have records of.

    The p values are adjusted for the number of pairs.

    Raises:
        ValueError: two policies have no seed in common.
    """
    policy_pairs = list(itertools.combinations(records_by_policy, 2))
    outcome_counts = [
        _count_outcomes(records_by_policy[a], records_by_policy[b]) for a, b in policy_pairs
    ]
    p_values = holm_adjust([paired_p_value(counts) for counts in outcome_counts])
    comparisons = []
    for (a, b), counts, p_value in zip(policy_pairs, outcome_counts, p_values, strict=True):
        low, high = difference_interval(counts)
        needed = required_sample_size(counts, comparisons=len(policy_pairs))
        comparisons.append(
            Comparison(
                a,
                b,
                *counts,
                difference=counts.difference,
                low=low,
                high=high,
                p_value=p_value,
                additional_episodes_needed=(
                    None if needed is None else max(0, needed - counts.episodes)
                ),
            )
        )
    return comparisons


def _count_outcomes(a: Sequence[EpisodeRecord], b: Sequence[EpisodeRecord]) -> PairedOutcomes:
    """Count the outcomes of two policies on the seeds that both have records of."""
    outcomes_b = {record.seed: record.success for record in b}
    common = [record for record in a if record.seed in outcomes_b]
    return pair_outcomes(
        [record.success for record in common], [outcomes_b[record.seed] for record in common]
    )


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Make a table with one row per pair of policies."""
    title = "Comparison on the same seeds (exact McNemar test, p values adjusted by Holm)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    columns = ("A", "B", "success A - B", "95 % CI", "only A", "only B", "adjusted p", "verdict")
    for column in columns:
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


def write_comparison(
    folder: Path,
    records_by_policy: RecordsByPolicy,
    comparisons: Sequence[Comparison],
    record_folders: Mapping[str, str],
) -> list[Path]:
    """Write `comparison.json` and `comparison.png` into `folder`; return their paths.

    Args:
        record_folders: the folder of each policy's records, by the policy's name.
    """
    content = {
        "policies": {
            name: {
                **summarize(records).metrics(),
                "records": record_folders[name],
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
    """Plot success rates, their differences and the stages reached.

    Rates and differences have 95 % confidence intervals.
    """
    from matplotlib.figure import Figure

    height = 1.6 + 0.4 * max(len(records_by_policy), len(comparisons))
    figure = Figure(figsize=(15, height), layout="constrained")
    rates, differences, stages = figure.subplots(1, 3)
    for row, records in enumerate(records_by_policy.values()):
        summary = summarize(records)
        interval = [summary.success_ci_low, summary.success_ci_high]
        rates.plot(interval, [row, row], color="tab:blue", linewidth=2)
        rates.plot([summary.success_rate], [row], "o", color="tab:blue")
        shares = {0: 1.0, **summary.stage_shares}
        stages.plot(list(shares), list(shares.values()), marker="o")
    rates.set_yticks(range(len(records_by_policy)), list(records_by_policy))
    rates.set_xlim(0, 1)
    num_episodes = min(len(records) for records in records_by_policy.values())
    rates.set_title(f"success rate with 95 % CI, n = {num_episodes}")
    stages.legend(list(records_by_policy), fontsize="small")
    stages.set_title("share of episodes that reached a stage")
    for row, c in enumerate(comparisons):
        color = "tab:red" if c.p_value <= SIGNIFICANCE else "tab:gray"
        differences.plot([c.low, c.high], [row, row], color=color, linewidth=2)
        differences.plot([c.difference], [row], "o", color=color)
    labels = [f"{c.a}\n- {c.b}" for c in comparisons]
    differences.set_yticks(range(len(labels)), labels, fontsize="small")
    differences.axvline(0.0, color="black", linewidth=0.8)
    differences.set_title(f"success A - B with 95 % CI (red: adjusted p <= {SIGNIFICANCE})")
    for axes in (rates, differences):
        axes.invert_yaxis()
    write_figure(path, figure)
