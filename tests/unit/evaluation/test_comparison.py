"""Paired comparisons: counts, verdicts, tables and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from imf_ray.evaluation.comparison import compare, comparison_table, write_comparison
from imf_ray.evaluation.tables import latency, outcome_table
from imf_ray.rollout.confidence_intervals import PairedOutcomes, difference_interval, paired_p_value
from imf_ray.rollout.records import EpisodeRecord


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
    assert comparison.p_value == paired_p_value(pairs) and comparison.verdict == "good is better"
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
    assert (
        "more episodes" in comparisons[1].verdict and comparisons[2].verdict == "nearly is better"
    )
    (same,) = compare({"one": GOOD, "two": GOOD})
    assert same.additional_episodes_needed is None and same.verdict == "equal success rates"


def test_tables_and_files(tmp_path: Path) -> None:
    results = {"good": GOOD, "poor": POOR}
    comparisons = compare(results)
    console = Console(width=140, record=True, file=(tmp_path / "out.txt").open("w"))
    console.print(outcome_table(list(results.items()), "Seeds 0-39"))
    console.print(comparison_table(comparisons))
    text = console.export_text()
    assert "0.75 [0.60, 0.86]" in text and "good is better" in text
    assert latency(GOOD) == {"inference_ms_p50": 2.0, "inference_ms_p95": 4.0}
    plain, plot = write_comparison(tmp_path, results, comparisons, dict.fromkeys(results, "here"))
    content = json.loads(plain.read_text())
    assert content["policies"]["good"]["rollout/success_rate"] == 0.75
    assert content["comparisons"][0]["only_a"] == 20 and content["seeds"] == list(range(40))
    assert plot.read_bytes().startswith(b"\x89PNG")
