"""What a sweep found: the ranked table, its files, and the picture of a grid."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from imf_ray.files import write_atomically, write_figure
from imf_ray.rollout.policies import EXPERT
from imf_ray.rollout.records import (
    NUM_EPISODES_METRIC,
    SUCCESS_RATE,
    describe_success,
    stage_shares,
)
from imf_ray.sweep.search_space import SearchSpace, short_names
from imf_ray.sweep.trial import STOPPED, TrialRecord
from imf_ray.training.checkpoint import VALIDATION_ERROR, checkpoint_rank_key

UNTRAINED_NAME = "untrained"
Baselines = Mapping[str, Mapping[str, float]]
"""Metrics by name: of the expert, and of an untrained agent."""
JSON_FILE, CSV_FILE, HEAT_MAP_FILE = "sweep.json", "sweep.csv", "grid.png"


def failures(records: Sequence[TrialRecord]) -> list[str]:
    """One line for each trial that failed, or whose validation did."""
    return [
        f"{record.name}: {record.error or record.metrics[VALIDATION_ERROR]}"
        for record in records
        if record.error or VALIDATION_ERROR in record.metrics
    ]


def rank(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Best first: by success, then by held-out action error; those without a checkpoint last."""
    judged = [record for record in records if record.best_checkpoint is not None]
    failed = [record for record in records if record.best_checkpoint is None]
    return sorted(judged, key=lambda record: checkpoint_rank_key(record.metrics)) + failed


def results_table(records: Sequence[TrialRecord], baselines: Baselines) -> Table:
    """The ranked trials between the expert's row and the untrained agent's."""
    names = short_names(list(records[0].params))
    table = Table(
        title="Ranked by success (95 % Wilson interval), then by held-out action error",
        title_justify="left",
        box=box.SIMPLE,
    )
    stages = " ".join(f">={stage} " for stage in stage_shares(baselines[EXPERT]))
    for column in ("trial", *names.values(), "success", "n", "reward", stages, "error", "step"):
        table.add_column(column, no_wrap=True)
    blank = ["" for _ in names]
    table.add_row(EXPERT, *blank, *_success_cells(baselines[EXPERT]), "", "")
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
    table.add_row(UNTRAINED_NAME, *blank, *_success_cells(baselines[UNTRAINED_NAME]), "", "")
    return table


def write_files(
    sweep_dir: Path, records: Sequence[TrialRecord], baselines: Baselines, space: SearchSpace
) -> list[Path]:
    """Write `sweep.json`, `sweep.csv` and, for a grid of two options, the heat map."""
    ranked = rank(records)
    content = {
        "search_space": space.name,
        "baselines": baselines,
        "trials": [dataclasses.asdict(record) for record in ranked],
    }
    write_atomically(sweep_dir / JSON_FILE, json.dumps(content, indent=1))
    rows = [_csv_row(record) for record in ranked]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(sweep_dir / CSV_FILE, table.getvalue())
    paths = [sweep_dir / JSON_FILE, sweep_dir / CSV_FILE]
    if len(space.grid) == 2 and not space.sample:
        draw_heat_map(sweep_dir / HEAT_MAP_FILE, ranked)
        paths.append(sweep_dir / HEAT_MAP_FILE)
    return paths


def read_sweep(sweep_dir: Path) -> tuple[list[TrialRecord], Baselines]:
    """The trials and the baselines of a sweep's folder."""
    content = json.loads((sweep_dir / JSON_FILE).read_text())
    return [TrialRecord(**trial) for trial in content["trials"]], content["baselines"]


def draw_heat_map(path: Path, records: Sequence[TrialRecord]) -> None:
    """Success and action error over the two varied options."""
    from matplotlib.figure import Figure

    first, second = records[0].params
    names = short_names([first, second])
    in_order = sorted(records, key=lambda record: record.name)
    rows = list(dict.fromkeys(str(record.params[first]) for record in in_order))
    columns = list(dict.fromkeys(str(record.params[second]) for record in in_order))
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels: tuple[tuple[str, str, float | None], ...] = (
        ("success rate [95 % interval]", "Greens", 1.0),
        ("held-out action error", "Oranges", None),
    )
    for place, (title, color_map, top) in enumerate(panels):
        values = np.full((len(rows), len(columns)), np.nan)
        axes = figure.add_subplot(1, 2, place + 1)
        for record in records:
            metrics = record.metrics
            at = rows.index(str(record.params[first])), columns.index(str(record.params[second]))
            success = describe_success(metrics)
            if place == 0 and success is not None:
                values[at] = metrics[SUCCESS_RATE]
                text = success.replace(" [", "\n[") + f"\nn={_episodes(metrics)}"
            elif place == 1 and "action_error" in metrics:
                values[at] = metrics["action_error"]
                text = f"{values[at]:.4f}"
            else:
                text = "none"
            axes.text(at[1], at[0], text, ha="center", va="center")
        axes.imshow(values, cmap=color_map, aspect="auto", vmin=0.0, vmax=top)
        axes.set_title(title)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xlabel(names[second])
        axes.set_ylabel(names[first])
    write_figure(path, figure)


def _success_cells(metrics: Mapping[str, Any]) -> list[str]:
    success = describe_success(metrics)
    if success is None:
        return ["not judged", "", "", ""]
    return [
        success,
        _episodes(metrics),
        f"{metrics['rollout/return_mean']:.1f}",
        " ".join(f"{share:.2f}" for share in stage_shares(metrics).values()),
    ]


def _episodes(metrics: Mapping[str, Any]) -> str:
    return f"{metrics[NUM_EPISODES_METRIC]:.0f}"


def _csv_row(record: TrialRecord) -> dict[str, Any]:
    """One CSV row; lists as JSON."""
    row = dataclasses.asdict(record)
    row |= {f"param/{key}": value for key, value in row.pop("params").items()}
    row |= row.pop("metrics")
    return {k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in row.items()}
