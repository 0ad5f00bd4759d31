"""Paired comparisons: counts, verdicts, tables and files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from imf_ray.evaluation.comparison import (
    compare,
    comparison_table,
    plot_comparison,
    write_comparison,
)
from imf_ray.evaluation.tables import latency, outcome_table
from imf_ray.rollout.confidence_intervals import PairedOutcomes, difference_interval, paired_p_value
from imf_ray.rollout.records import EpisodeRecord
from imf_ray.tables import FittedTables


def records(outcomes: list[bool], first: int = 0) -> list[EpisodeRecord]:
    """One record per outcome, on the seeds from `first` on."""
    timing = {"inference_ms_p50": 2.0, "inference_ms_p95": 4.0}
    return [
        EpisodeRecord(first + i, won, 4 if won else 1, 4, 1.0, 400, {}, "p", {}, timing=timing)
        for i, won in enumerate(outcomes)
    ]


GOOD, POOR = records([True] * 30 + [False] * 10), records([True] * 10 + [False] * 30)


def test_pair_is_compared_on_its_common_seeds() -> None:
    (comparison,) = compare({"good": GOOD, "poor": [*POOR[5:], *records([True] * 9, first=100)]})
    assert (comparison.episodes, comparison.only_a, comparison.only_b) == (35, 20, 0)
    pairs = PairedOutcomes(35, 20, 0)
    assert (comparison.low, comparison.high) == difference_interval(pairs)
    assert (
        comparison.p_value == paired_p_value(pairs)
        and comparison.verdict == "good is better than poor"
    )
    with pytest.raises(ValueError, match="0 and 0 episodes"):
        compare({"good": GOOD, "elsewhere": records([True], first=100)})


def test_verdicts_and_adjustment_for_several_comparisons() -> None:
    nearly = records([True] * 28 + [False] * 12)
    comparisons = compare({"good": GOOD, "poor": POOR, "nearly": nearly})
    assert [(c.a, c.b) for c in comparisons] == [
        ("good", "poor"),
        ("good", "nearly"),
        ("poor", "nearly"),
    ]
    assert comparisons[0].p_value == pytest.approx(3 * paired_p_value(PairedOutcomes(40, 20, 0)))
    assert "more episodes" in comparisons[1].verdict and comparisons[2].verdict.startswith(
        "nearly is better"
    )
    (same,) = compare({"one": GOOD, "two": GOOD})
    assert same.additional_episodes_needed is None and same.verdict == "the success rates are equal"


def test_tables_and_files(tmp_path: Path) -> None:
    results = {"good": GOOD, "poor": POOR}
    comparisons = compare(results)
    console = Console(width=140, record=True, file=(tmp_path / "out.txt").open("w"))
    console.print(outcome_table(list(results.items()), "Seeds 0-39"))
    console.print(comparison_table(comparisons))
    text = console.export_text()
    assert "0.75 [0.60, 0.86]" in text and "A is better than B" in text and "2.0/4.0" in text
    assert latency(GOOD) == {"inference_ms_p50": 2.0, "inference_ms_p95": 4.0}
    plain, plot = write_comparison(tmp_path, results, comparisons, dict.fromkeys(results, "here"))
    content = json.loads(plain.read_text())
    assert content["policies"]["good"]["rollout/success_rate"] == 0.75
    assert content["comparisons"][0]["only_a"] == 20 and content["seeds"] == list(range(40))
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("width", [80, 110, 160])
def test_the_tables_name_different_policies_and_whole_verdicts(width: int) -> None:
    folder = "s3://bucket/研究/runs/sweep-of-sizes/trials/00001-n_emb_128-n_layer_4"
    names = [f"{folder}/checkpoint_0000{step}000" for step in range(4)]
    outcomes = [[True] * 30 + [False] * 10, [True] * 28 + [False] * 12, [False] * 40, [True] * 40]
    results = dict(zip(names, map(records, outcomes), strict=True))
    comparisons = compare(results)
    console = Console(width=width, record=True, file=io.StringIO())
    tables = outcome_table(list(results.items()), "Seeds 0-39"), comparison_table(comparisons)
    console.print(FittedTables(*tables))
    lines = console.export_text().splitlines()
    assert all(cell_len(line) <= width for line in lines)
    policies = [line.split()[0] for line in lines[3:7]]
    assert len(set(policies)) == len(names)
    pairs = {tuple(line.split()[:2]) for line in lines if line.split()[:1] == policies[:1]}
    assert {(policies[0], other) for other in policies[1:]} <= pairs
    text = "".join(lines).replace(" ", "")
    assert all(name in text for name in names)
    head = next(index for index, line in enumerate(lines) if "verdict" in line)
    column = lines[head].index("verdict")
    end = lines.index("", head)
    sentences = " ".join(line[column:].strip() for line in lines[head + 2 : end])
    assert sentences == " ".join(comparison.describe("A", "B") for comparison in comparisons)


def test_the_plot_shortens_names_and_draws_them_as_they_are(tmp_path: Path) -> None:
    names = [f"runs/cost_$5_$[x/{'long' * 9}/checkpoint_0000{step}000" for step in range(2)]
    results = dict(zip(names, (GOOD, POOR), strict=True))
    plot_comparison(tmp_path / "plot.png", results, compare(results))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
