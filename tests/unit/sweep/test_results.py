"""Ranking, table, heat map and files of a sweep's results."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from rich.cells import cell_len
from rich.console import Console

from imf_ray.sweep.results import (
    failed_trials,
    failure_lines,
    plot_heat_map,
    rank,
    results_table,
    write_results,
)
from imf_ray.sweep.search_space import SearchSpace
from imf_ray.sweep.sweep_dir import SweepDir
from imf_ray.sweep.trial_record import FAILED, FINISHED, STOPPED, TrialRecord
from imf_ray.tables import FittedTable


def metrics(success: float | None = None, error: float | None = None) -> dict[str, Any]:
    values: dict[str, Any] = {"step": 10}
    if error is not None:
        values["action_error"] = error
    if success is not None:
        values |= {
            "rollout/episodes": 20.0,
            "rollout/success_rate": success,
            "rollout/success_ci_low": success - 0.1,
            "rollout/success_ci_high": success + 0.1,
            "rollout/return_mean": 100.0 * success,
            "rollout/stage_1": 0.75,
        }
    return values


def record(name: str, values: dict[str, Any], status: str = FINISHED, **params: Any) -> TrialRecord:
    checkpoint = None if status == FAILED else "checkpoint"
    error = "it diverged" if status == FAILED else None
    return TrialRecord(name, params, status, values, checkpoint, error=error)


RECORDS = [
    record("00000-x", metrics(0.25, 0.02), **{"a.x": 1, "b.y": 3}),
    record("00001-x", {}, FAILED, **{"a.x": 1, "b.y": 4}),
    record("00002-x", metrics(0.5, 0.03), STOPPED, **{"a.x": 2, "b.y": 3}),
    record("00003-x", metrics(error=0.01), **{"a.x": 2, "b.y": 4}),
]
BASELINES = {"expert": metrics(0.9), "untrained": metrics(0.1)}
SPACE = SearchSpace("grid", grid={"a.x": [1, 2], "b.y": [3, 4]})


def test_ranking_is_by_success_then_action_error_and_failed_trials_are_last() -> None:
    trials = [
        record("failed", {}, FAILED),
        record("a", metrics(0.25, 0.2)),
        record("b", metrics(0.5, 0.9)),
        record("c", metrics(0.25, 0.1)),
    ]
    assert [trial.name for trial in rank(trials)] == ["b", "c", "a", "failed"]


def printed(table: FittedTable, width: int) -> list[str]:
    """Return the lines that a table has on a console of a width."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text().splitlines()


NAMES = ["expert", "00002", "00000", "00003", "00001", "untrained"]


def test_the_table_lies_between_the_expert_and_the_untrained_agent() -> None:
    lines = printed(results_table(RECORDS, BASELINES), 120)
    assert [line.split()[0] for line in lines if line.startswith(tuple(NAMES))] == NAMES
    (stopped,) = (line for line in lines if "00002" in line)
    assert "0.50 [0.40, 0.60]" in stopped and "0.0300" in stopped and "10, stopped" in stopped
    (failed,) = (line for line in lines if "00001" in line)
    assert failed.split() == ["00001", "failed", "1", "4"]
    assert any("00003" in line and "not evaluated" in line for line in lines)


def test_results_are_written_and_read_back(tmp_path: Path) -> None:
    sweep_dir = SweepDir(tmp_path)
    assert sweep_dir.read_results() is None
    files = write_results(sweep_dir, RECORDS, BASELINES, SPACE)
    assert [file.name for file in files] == ["sweep.json", "sweep.csv", "grid.png"]
    assert sweep_dir.read_results() == (rank(RECORDS), BASELINES)
    assert json.loads(files[0].read_text())["search_space"] == "grid"
    rows = list(csv.DictReader(files[1].open()))
    assert [row["param/a.x"] for row in rows] == ["2", "1", "2", "1"]
    assert rows[0]["rollout/success_rate"] == "0.5" and json.loads(rows[0]["workers"]) == []
    assert files[2].read_bytes().startswith(b"\x89PNG")
    sampled = SearchSpace("random", grid=SPACE.grid, sample={"c": {"choice": [1]}})
    assert len(write_results(sweep_dir, RECORDS, BASELINES, sampled)) == 2


def test_failed_trials_and_failed_validations_are_listed() -> None:
    invalid = record("late", {"step": 1, "validation_error": "no such task"})
    assert failure_lines([*RECORDS, invalid]) == ["00001-x: it diverged", "late: no such task"]


def test_a_trial_without_a_success_rate_has_failed() -> None:
    assert [trial.name for trial in failed_trials(RECORDS)] == ["00001-x", "00003-x"]


def test_the_table_needs_no_baseline() -> None:
    """A task may have no expert, and a sweep no checkpoint."""
    for baselines in ({**BASELINES, "expert": {}}, {"expert": {}, "untrained": {}}):
        lines = printed(results_table(RECORDS, baselines), 120)
        assert sum(line.startswith(tuple(NAMES)) for line in lines) == len(RECORDS) + 2


@pytest.mark.parametrize("width", [80, 110, 160])
def test_the_table_of_many_options_holds_everything_at_every_width(width: int) -> None:
    weights = "s3://bucket/研究/pretrained/weights/of/the/image/encoder/resnet18_größe.safetensors"
    options = {"n_emb": 96, "crop_size": 84, "names": ["r_vis", "top", "front"], "w": weights}
    records = [
        record(f"{number:05d}-x", metrics(0.1 * number, 0.02), **options, lr=number * 2e-5)
        for number in range(1, 9)
    ]
    lines = printed(results_table(records, BASELINES), width)
    assert all(cell_len(line) <= width for line in lines)
    text = "\n".join(lines)
    for number in range(1, 9):
        assert f"{0.1 * number:.2f} [" in text and f"{number * 2e-5}" in text
    for title in (*options, "success", "reward", ">=1", "action error", "step"):
        assert title in text
    assert weights in "".join(line.partition("  ")[2].strip() for line in lines)


def test_the_heat_map_names_the_state_of_trials_in_legible_cells() -> None:
    figure = plot_heat_map([*RECORDS[:3], record("00003-x", {}, FAILED, **{"a.x": "$", "b.y": 4})])
    for axes in figure.axes:
        cells = list(zip(axes.patches, axes.texts, strict=True))
        assert len(cells) == len(RECORDS)
        for cell, text in cells:
            assert contrast(cell.get_facecolor(), to_rgb(text.get_color())) >= 4.5
            assert cell.get_edgecolor()[3] > 0 and cell.get_linewidth() > 0
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[0] == "0.25\n[0.15, 0.35]\nn=20" and texts[1] == "failed"
    assert texts[2].endswith("stopped")


def contrast(color: Sequence[float], other: Sequence[float]) -> float:
    """Return the contrast of two colors by WCAG 2.1."""

    def luminance(color: Sequence[float]) -> float:
        linear = [((c + 0.055) / 1.055) ** 2.4 if c > 0.04045 else c / 12.92 for c in color[:3]]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    low, high = sorted([luminance(color), luminance(other)])
    return (high + 0.05) / (low + 0.05)
