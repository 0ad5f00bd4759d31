"""Policies on the same episodes: the paired test, the interval of the difference, the picture."""

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
Records = Mapping[str, Sequence[EpisodeRecord]]


@dataclass(frozen=True)
class Comparison:
    """Two policies on the same episodes."""

    a: str
    b: str
    episodes: int
    only_a: int
    """Episodes on which A alone succeeded."""
    only_b: int
    difference: float
    """Success rate of A minus that of B, and its 95 % interval (Bonett and Price, 2012)."""
    low: float
    high: float
    p_value: float
    """Of the exact McNemar test, adjusted for the number of comparisons (Holm)."""
    more_episodes: int | None
    """Episodes beyond these with which a difference like this one would be found significant four
    times in five; None if none was seen."""

    @property
    def verdict(self) -> str:
        """In words."""
        if self.p_value <= SIGNIFICANCE:
            return f"{self.a if self.difference > 0 else self.b} is better"
        if self.more_episodes is None:
            return "no difference seen"
        return f"not separated; about {self.more_episodes} more episodes would"


def compare(judged: Records) -> list[Comparison]:
    """Every pair of policies, on the seeds that both have.

    Raises:
        ValueError: two policies have no seed in common.
    """
    found = []
    policies = list(itertools.combinations(judged, 2))
    for a, b in policies:
        outcomes_b = {record.seed: record.success for record in judged[b]}
        common = [record for record in judged[a] if record.seed in outcomes_b]
        pairs = pair_outcomes(
            [record.success for record in common], [outcomes_b[record.seed] for record in common]
        )
        needed = required_sample_size(pairs, comparisons=len(policies))
        low, high = difference_interval(pairs)
        found.append((a, b, pairs, low, high, paired_p_value(pairs), needed))
    adjusted = holm_adjust([entry[5] for entry in found])
    return [
        Comparison(
            a,
            b,
            *pairs,
            difference=pairs.difference,
            low=low,
            high=high,
            p_value=p_value,
            more_episodes=None if needed is None else max(0, needed - pairs.episodes),
        )
        for (a, b, pairs, low, high, _, needed), p_value in zip(found, adjusted, strict=True)
    ]


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """One row a pair."""
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
    folder: Path, judged: Records, comparisons: Sequence[Comparison], sources: Mapping[str, str]
) -> list[Path]:
    """Write `comparison.json` and `comparison.png`.

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
            for name, records in judged.items()
        },
        "comparisons": [asdict(c) | {"verdict": c.verdict} for c in comparisons],
        "seeds": sorted({record.seed for records in judged.values() for record in records}),
    }
    write_atomically(folder / COMPARISON_FILE, json.dumps(content, indent=1))
    plot_comparison(folder / PLOT_FILE, judged, comparisons)
    return [folder / COMPARISON_FILE, folder / PLOT_FILE]


def plot_comparison(path: Path, judged: Records, comparisons: Sequence[Comparison]) -> None:
    """Success rates, differences, and how far the episodes got, with their intervals."""
    from matplotlib.figure import Figure

    height = 1.6 + 0.4 * max(len(judged), len(comparisons))
    figure = Figure(figsize=(15, height), layout="constrained")
    rates, differences, stages = figure.subplots(1, 3)
    for place, (_, records) in enumerate(judged.items()):
        s = summarize(records)
        rates.plot(
            [s.success_ci_low, s.success_ci_high], [place, place], color="tab:blue", linewidth=2
        )
        rates.plot([s.success_rate], [place], "o", color="tab:blue")
        shares = {0: 1.0, **s.stage_shares}
        stages.plot(list(shares), list(shares.values()), marker="o")
    rates.set_yticks(range(len(judged)), list(judged))
    rates.set_xlim(0, 1)
    rates.set_title(f"success rate, n = {min(len(records) for records in judged.values())}, 95 %")
    stages.legend(list(judged), fontsize="small")
    stages.set_title("share of episodes that reached a stage")
    for place, c in enumerate(comparisons):
        color = "tab:red" if c.p_value <= SIGNIFICANCE else "tab:gray"
        differences.plot([c.low, c.high], [place, place], color=color, linewidth=2)
        differences.plot([c.difference], [place], "o", color=color)
    names = [f"{c.a}\n- {c.b}" for c in comparisons]
    differences.set_yticks(range(len(names)), names, fontsize="small")
    differences.axvline(0.0, color="black", linewidth=0.8)
    differences.set_title(f"difference of success, 95 % (red: p <= {SIGNIFICANCE})")
    for axes in (rates, differences):
        axes.invert_yaxis()
    write_figure(path, figure)
