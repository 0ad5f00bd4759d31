"""Results of a sweep: a table of ranked trials, the result files, and a heat map of a 2D grid."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imf_ray.checkpoint_dir import VALIDATION_ERROR, checkpoint_rank_key
from imf_ray.figures import plain_names, text_color
from imf_ray.labels import short_labels
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
from imf_ray.tables import Column, FittedTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL_INCHES = (1.4, 1.0)
"""Width and height of a cell of the heat map."""
MIN_PANEL_INCHES = 2.8
"""Minimum width of one half of the heat map, which its title needs."""
VALUE_LABEL_WIDTH = 18
"""Maximum width in characters of an option's value beside the heat map."""
MISSING_COLOR = (0.93, 0.93, 0.93)
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


def results_table(records: Sequence[TrialRecord], baselines: Baselines) -> FittedTable:
    """Make a table of the ranked trials between the expert (first) and the untrained agent."""
    names = short_names(list(records[0].params))
    evaluated = baselines[EXPERT_NAME] or baselines[UNTRAINED_NAME]
    stages = " ".join(f">={stage} " for stage in stage_shares(evaluated)).rstrip()
    titles = ["trial", "success", "n", *names.values(), "reward", stages, "action error", "step"]
    no_params = ["" for _ in names]

    def baseline_row(name: str) -> list[str]:
        success, count, *others = _success_cells(baselines[name])
        return [name, success, count, *no_params, *others, "", ""]

    rows = [baseline_row(EXPERT_NAME)]
    for record in rank(records):
        params = [str(record.params.get(key, "")) for key in names]
        number, metrics = record.name.split("-", 1)[0], record.metrics
        if record.best_checkpoint is None:
            rows.append([number, record.status, "", *params, "", "", "", ""])
            continue
        success, count, *others = _success_cells(metrics)
        error = "" if "action_error" not in metrics else f"{metrics['action_error']:.4f}"
        step = f"{metrics['step']:.0f}" + (", stopped" if record.status == STOPPED else "")
        rows.append([number, success, count, *params, *others, error, step])
    rows.append(baseline_row(UNTRAINED_NAME))
    columns = [
        Column(title, cells, is_name=title in names.values())
        for title, cells in zip(titles, zip(*rows, strict=True), strict=True)
    ]
    title = "Ranked by success rate (95 % Wilson confidence interval), then by action error"
    return FittedTable(columns, title)


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


@plain_names()
def plot_heat_map(records: Sequence[TrialRecord]) -> Figure:
    """Plot success rate and action error as functions of the two options of the grid."""
    import matplotlib
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    row_option, column_option = records[0].params
    names = short_names([row_option, column_option])
    in_file_order = sorted(records, key=lambda record: record.name)
    row_labels = _value_labels(in_file_order, row_option)
    column_labels = _value_labels(in_file_order, column_option)
    rows, columns = list(row_labels), list(column_labels)
    cell_width, cell_height = CELL_INCHES
    panel_width = 1.2 + max(cell_width * len(columns), MIN_PANEL_INCHES)
    size = (2 * panel_width, 1.5 + cell_height * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    error_title = "action error on held-out episodes\n(less is better)"
    panels = (
        ("success rate\n[95 % CI]", "Greens", 1.0, _success_panel_cell),
        (error_title, "Oranges", None, _error_panel_cell),
    )
    for index, (title, color_map, color_max, panel_cell) in enumerate(panels):
        axes = figure.add_subplot(1, 2, index + 1)
        cells = {}
        for record in records:
            row = rows.index(str(record.params[row_option]))
            column = columns.index(str(record.params[column_option]))
            cells[row, column] = panel_cell(record)
        maximum = color_max or max((value for value, _ in cells.values() if value), default=1.0)
        scale, colors = Normalize(0.0, maximum), matplotlib.colormaps[color_map]
        for (row, column), (value, text) in cells.items():
            fill = MISSING_COLOR if value is None else colors(scale(value))[:3]
            cell = Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=fill, edgecolor="black")
            axes.add_patch(cell)
            axes.text(column, row, text, ha="center", va="center", color=text_color(fill))
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_title(title, fontsize="medium")
        axes.set_xticks(range(len(columns)), list(column_labels.values()))
        axes.set_yticks(range(len(rows)), list(row_labels.values()))
        axes.tick_params(length=0)
        axes.set_xlabel(names[column_option])
        axes.set_ylabel(names[row_option])
    return figure


def _value_labels(records: Sequence[TrialRecord], option: str) -> dict[str, str]:
    """Return the label of each value of an option, in the order of the trials."""
    return short_labels((str(record.params[option]) for record in records), VALUE_LABEL_WIDTH)


def _success_panel_cell(record: TrialRecord) -> tuple[float | None, str]:
    """Return value and label of a heat map cell; the value is None without a validation."""
    success = describe_success(record.metrics)
    if success is None:
        return None, _reason_of_absence(record)
    lines = [*success.split(" ", 1), f"n={_num_episodes(record.metrics)}"]
    return float(record.metrics[SUCCESS_RATE]), "\n".join([*lines, *_mark(record)])


def _error_panel_cell(record: TrialRecord) -> tuple[float | None, str]:
    if "action_error" not in record.metrics:
        return None, _reason_of_absence(record)
    error = float(record.metrics["action_error"])
    return error, "\n".join([f"{error:.4f}", *_mark(record)])


def _reason_of_absence(record: TrialRecord) -> str:
    return "not evaluated" if record.status == FINISHED else record.status


def _mark(record: TrialRecord) -> list[str]:
    """Return the status of a trial that did not finish as the last line of a cell."""
    return [] if record.status == FINISHED else [record.status]


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
