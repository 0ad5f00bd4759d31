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

from imf_ray.figures import plain_names
from imf_ray.files import write_atomically, write_figure
from imf_ray.folders import COMPARISON_FILE
from imf_ray.labels import short_labels
from imf_ray.rollout.confidence_intervals import (
    PairedOutcomes,
    difference_interval,
    holm_adjust,
    pair_outcomes,
    paired_p_value,
    required_sample_size,
)
from imf_ray.rollout.records import EpisodeRecord, summarize
from imf_ray.tables import Column, FittedTable

PLOT_FILE = "comparison.png"
SIGNIFICANCE = 0.05
"""Largest adjusted p value at which a difference is called significant."""
PLOT_LABEL_WIDTH = 32
"""Maximum width of a policy's name in the plot, in characters."""
MARKERS = "osv^D*PX"
"""Markers of the policies in the plot, used in turn."""
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
        """The result as a clause, with the names of the policies."""
        return self.describe(self.a, self.b)

    def describe(self, a: str, b: str) -> str:
        """Return the result as a clause, with other names of the policies A and B."""
        if self.p_value <= SIGNIFICANCE:
            better, other = (a, b) if self.difference > 0 else (b, a)
            return f"{better} is better than {other}"
        if self.additional_episodes_needed is None:
            return "the success rates are equal"
        text = "the difference is not significant"
        if self.additional_episodes_needed:
            text += f"; about {self.additional_episodes_needed} more episodes would show it"
        return text


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


def comparison_table(comparisons: Sequence[Comparison]) -> FittedTable:
    """Make a table with one row per pair of policies."""
    columns = {
        "A - B [95 % CI]": [f"{c.difference:+.2f} {_interval(c)}" for c in comparisons],
        "only A/B": [f"{c.only_a}/{c.only_b}" for c in comparisons],
        "p": [f"{c.p_value:.3g}" for c in comparisons],
    }
    title = (
        "Success rates on the same seeds: difference, number of episodes on which only A or only "
        "B succeeded, p of the exact McNemar test (adjusted by Holm)"
    )
    pair = [
        Column("A", [c.a for c in comparisons], is_name=True),
        Column("B", [c.b for c in comparisons], is_name=True),
    ]
    verdicts = Column("verdict", [c.describe("A", "B") for c in comparisons], is_sentence=True)
    columns_in_order = [*pair, *itertools.starmap(Column, columns.items()), verdicts]
    return FittedTable(columns_in_order, title, num_keys=len(pair))


def _interval(comparison: Comparison) -> str:
    return f"[{comparison.low:+.2f}, {comparison.high:+.2f}]"


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


@plain_names()
def plot_comparison(
    path: Path, records_by_policy: RecordsByPolicy, comparisons: Sequence[Comparison]
) -> None:
    """Plot success rates, their differences and the stages reached.

    Rates and differences have 95 % confidence intervals.
    """
    from matplotlib.figure import Figure

    labels = short_labels(records_by_policy, PLOT_LABEL_WIDTH)
    legend = [f"{label} = {name}" for name, label in labels.items() if label != name]
    height = 1.8 + 0.4 * max(len(records_by_policy), len(comparisons)) + 0.2 * len(legend)
    figure = Figure(figsize=(15, height), layout="constrained")
    rates, differences, stages = figure.subplots(1, 3)
    for row, records in enumerate(records_by_policy.values()):
        summary = summarize(records)
        color, marker = f"C{row}", MARKERS[row % len(MARKERS)]
        interval = [summary.success_ci_low, summary.success_ci_high]
        rates.plot(interval, [row, row], color=color, linewidth=2)
        rates.plot([summary.success_rate], [row], color=color, marker=marker, clip_on=False)
        shares = {0: 1.0, **summary.stage_shares}
        stages.plot(list(shares), list(shares.values()), color=color, marker=marker, clip_on=False)
    rates.set_yticks(range(len(labels)), list(labels.values()))
    rates.set_xlim(0, 1)
    num_episodes = min(len(records) for records in records_by_policy.values())
    rates.set_title(f"success rate with 95 % CI, n = {num_episodes}", fontsize="medium")
    stages.set_ylim(0, 1)
    stages.xaxis.get_major_locator().set_params(integer=True)
    stages.set_title("share of episodes that reached a stage", fontsize="medium")
    stages.set_xlabel("stage (colors and markers as on the left)")
    for row, c in enumerate(comparisons):
        is_significant = c.p_value <= SIGNIFICANCE
        color = "tab:red" if is_significant else "dimgray"
        differences.plot([c.low, c.high], [row, row], color=color, linewidth=2)
        fill = color if is_significant else "white"
        differences.plot([c.difference], [row], "o", color=color, markerfacecolor=fill)
    pairs = [f"{labels[c.a]}\n- {labels[c.b]}" for c in comparisons]
    differences.set_yticks(range(len(pairs)), pairs, fontsize="small")
    differences.axvline(0.0, color="black", linewidth=0.8)
    differences.set_title("difference of success rates with 95 % CI", fontsize="medium")
    differences.set_xlabel(f"filled: significant, adjusted p <= {SIGNIFICANCE}")
    for axes in (rates, differences):
        axes.invert_yaxis()
    if legend:
        figure.supxlabel("\n".join(legend), x=0.01, ha="left", fontsize="small")
    write_figure(path, figure)
