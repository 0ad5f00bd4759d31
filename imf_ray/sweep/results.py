"""Results of a sweep: a table of ranked trials, the result files, and a heat map of a 2D grid."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.table import Table

from imf_ray.checkpoint_dir import VALIDATION_ERROR, checkpoint_rank_key
from imf_ray.rollout.policy_spec import PolicyKind
from imf_ray.rollout.records import (
    NUM_EPISODES_METRIC,
    SUCCESS_RATE,
    describe_success,
    stage_shares,
)
from imf_ray.sweep.search_space import SearchSpace, short_names
from imf_ray.sweep.sweep_dir import Baselines, SweepDir
from imf_ray.sweep.trial_record import FAILED, FINISHED, STOPPED, TrialRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPERT_NAME, UNTRAINED_NAME = str(PolicyKind.EXPERT), str(PolicyKind.UNTRAINED)
"""Names of the baselines in the table and in `baselines.json`."""


def failure_lines(records: Sequence[TrialRecord]) -> list[str]:
    """Return a line for each trial that failed or whose last validation failed."""
    return [
        f"{record.name}: {record.error or record.metrics[VALIDATION_ERROR]}"
        for record in records
        if record.error or VALIDATION_ERROR in record.metrics
    ]


def failed_trials(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trials that failed, and those that ended without a success rate."""
    return [
        record
        for record in records
        if record.status == FAILED
        or (record.status == FINISHED and SUCCESS_RATE not in record.metrics)
    ]


def rank(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Sort trials by success rate, then by action error; trials without a checkpoint are last."""
    trained = [record for record in records if record.best_checkpoint is not None]
    failed = [record for record in records if record.best_checkpoint is None]
    return sorted(trained, key=lambda record: checkpoint_rank_key(record.metrics)) + failed


def results_table(records: Sequence[TrialRecord], baselines: Baselines) -> Table:
    """Make a table of the ranked trials between the expert (first) and the untrained agent."""
    names = short_names(list(records[0].params))
    evaluated = baselines[EXPERT_NAME] or baselines[UNTRAINED_NAME]
    table = Table(
        title="Ranked by success rate (95 % Wilson confidence interval), then by action error",
        title_justify="left",
        box=box.SIMPLE,
    )
    stages = " ".join(f">={stage} " for stage in stage_shares(evaluated))
    for column in ("trial", *names.values(), "success", "n", "reward", stages, "error", "step"):
        table.add_column(column, no_wrap=True)
    no_params = ["" for _ in names]
    table.add_row(EXPERT_NAME, *no_params, *_success_cells(baselines[EXPERT_NAME]), "", "")
    for record in rank(records):
        params = [str(record.params[key]) for key in names]
        number = record.name.split("-", 1)[0]
        if record.best_checkpoint is None:
            table.add_row(number, *params, record.status)
            continue
        metrics = record.metrics
        error = metrics.get("action_error")
        table.add_row(
            number,
            *params,
            *_success_cells(metrics),
            "" if error is None else f"{error:.4f}",
            f"{metrics['step']:.0f}" + (", stopped" if record.status == STOPPED else ""),
        )
    untrained = _success_cells(baselines[UNTRAINED_NAME])
    table.add_row(UNTRAINED_NAME, *no_params, *untrained, "", "")
    return table


def write_results(
    sweep_dir: SweepDir, records: Sequence[TrialRecord], baselines: Baselines, space: SearchSpace
) -> list[Path]:
    """Write `sweep.json`, `sweep.csv` and, for a grid of two options, the heat map.

    Returns:
        The files written.
    """
    ranked = rank(records)
    files = [
        sweep_dir.write_results(space.name, ranked, baselines),
        sweep_dir.write_csv(_csv_table(ranked)),
    ]
    if len(space.grid) == 2 and not space.sample:
        files.append(sweep_dir.write_heat_map(plot_heat_map(ranked)))
    return files


def plot_heat_map(records: Sequence[TrialRecord]) -> Figure:
    """Plot success rate and action error as functions of the two options of the grid."""
    from matplotlib.figure import Figure

    row_option, column_option = records[0].params
    names = short_names([row_option, column_option])
    in_file_order = sorted(records, key=lambda record: record.name)
    rows = list(dict.fromkeys(str(record.params[row_option]) for record in in_file_order))
    columns = list(dict.fromkeys(str(record.params[column_option]) for record in in_file_order))
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = (
        ("success rate [95 % CI]", "Greens", 1.0, _success_panel_cell),
        ("action error on held-out episodes", "Oranges", None, _error_panel_cell),
    )
    for index, (title, color_map, color_max, panel_cell) in enumerate(panels):
        values = np.full((len(rows), len(columns)), np.nan)
        axes = figure.add_subplot(1, 2, index + 1)
        for record in records:
            row = rows.index(str(record.params[row_option]))
            column = columns.index(str(record.params[column_option]))
            values[row, column], text = panel_cell(record.metrics)
            axes.text(column, row, text, ha="center", va="center")
        axes.imshow(values, cmap=color_map, aspect="auto", vmin=0.0, vmax=color_max)
        axes.set_title(title)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xlabel(names[column_option])
        axes.set_ylabel(names[row_option])
    return figure


def _success_panel_cell(metrics: Mapping[str, Any]) -> tuple[float, str]:
    """Return value and label of a heat map cell; NaN and "none" without a validation."""
    success = describe_success(metrics)
    if success is None:
        return float("nan"), "none"
    label = success.replace(" [", "\n[") + f"\nn={_num_episodes(metrics)}"
    return float(metrics[SUCCESS_RATE]), label


def _error_panel_cell(metrics: Mapping[str, Any]) -> tuple[float, str]:
    if "action_error" not in metrics:
        return float("nan"), "none"
    error = float(metrics["action_error"])
    return error, f"{error:.4f}"


def _success_cells(metrics: Mapping[str, Any]) -> list[str]:
    success = describe_success(metrics)
    if success is None:
        return ["not evaluated", "", "", ""]
    return [
        success,
        _num_episodes(metrics),
        f"{metrics['rollout/return_mean']:.1f}",
        " ".join(f"{share:.2f}" for share in stage_shares(metrics).values()),
    ]


def _num_episodes(metrics: Mapping[str, Any]) -> str:
    return f"{metrics[NUM_EPISODES_METRIC]:.0f}"


def _csv_table(records: Sequence[TrialRecord]) -> str:
    """Return CSV text with one row per trial."""
    rows = [_csv_row(record) for record in records]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _csv_row(record: TrialRecord) -> dict[str, Any]:
    """Return a CSV row with parameters and metrics as columns. Lists and dicts are JSON text."""
    row = dataclasses.asdict(record)
    row |= {f"param/{key}": value for key, value in row.pop("params").items()}
    row |= row.pop("metrics")
    return {k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in row.items()}
