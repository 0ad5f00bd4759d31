"""Progress of runs, read from their folders: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console

from imf_ray.checkpoint_dir import VALIDATION_ERROR
from imf_ray.errors import UserError
from imf_ray.folders import display
from imf_ray.progress_bars import ProgressBars
from imf_ray.rollout.records import NUM_EPISODES_METRIC, describe_success
from imf_ray.storage import authoritative_path, display_path
from imf_ray.training.live_progress import FEATURES, UPDATES, VALIDATION, Progress, read_progress
from imf_ray.training.run_dir import RunDir
from imf_ray.training.run_records import (
    ACTION_ERROR,
    ACTION_MAE,
    HOLD_MAE,
    INVALID_CHECKPOINTS,
    MEAN_MAE,
    RESTARTS,
    VALIDATED,
    merge_metrics,
)

POLL_INTERVAL_S = 1.0
"""Seconds between two reads of a run's metrics."""
WAITING = "waiting for the first update"
"""Text of a bar before its run's workers have started."""
TRAINING_FORMATS = {
    "epoch": "epoch {:.2f}",
    "loss": "loss {:.4f}",
    "lr": "lr {:.1e}",
    "grad_norm": "grad {:.2f}",
    "samples_per_s": "{:.0f} samples/s",
    "data_wait_frac": "data wait {:.0%}",
}
"""Training metrics to show, in this order, and the format of each."""


class RunProgress:
    """Shows the progress of runs while the `with` block trains them.

    Args:
        runs: total number of updates of each run, by run folder. The folders need not exist yet.
    """

    def __init__(self, runs: Mapping[RunDir, int], console: Console) -> None:
        self._runs, self._console = runs, console
        self._offsets = dict.fromkeys(runs, 0)
        self._latest: dict[RunDir, dict[str, Any]] = {run_dir: {} for run_dir in runs}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll_loop, daemon=True)
        self._bars = ProgressBars(console)

    def __enter__(self) -> RunProgress:
        self._started_at = time.time()
        for run_dir in self._runs:  # lines of an earlier session are not shown
            self._new_lines(run_dir)
        self._bars.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._poll()
        self._bars.__exit__()

    def _poll_loop(self) -> None:
        while not self._stop.wait(POLL_INTERVAL_S):
            self._poll()

    def _poll(self) -> None:
        for run_dir in self._runs:
            for line in self._new_lines(run_dir):
                self._latest[run_dir] = merge_metrics(self._latest[run_dir], line)
                self._show(run_dir, line)
            self._show_live(run_dir)

    def _new_lines(self, run_dir: RunDir) -> list[dict[str, Any]]:
        try:
            lines, self._offsets[run_dir] = run_dir.read_new_metrics(self._offsets[run_dir])
        except UserError:  # a brief network failure; the next poll tries again
            return []
        return lines

    def _show_live(self, run_dir: RunDir) -> None:
        """Move the bar by what has happened since the last line of metrics."""
        updates, validation = (self._live(run_dir, kind) for kind in (UPDATES, VALIDATION))
        latest, total = self._latest[run_dir], self._runs[run_dir]
        if updates is None and "loss" not in latest and VALIDATED not in latest:
            self._show_start(run_dir)
            return
        step = max(latest.get("step", 0), 0 if updates is None else updates.step)
        text = format_metrics(latest)
        is_validated = validation is not None and validation.completed < validation.total
        if validation is not None and is_validated:
            episodes = f"{validation.completed} of {validation.total} episodes"
            text += f"  validation of step {validation.step}: {episodes}"
        is_active = step < total or is_validated
        self._bars.move(run_dir.name, step, total, text.strip(), is_active)

    def _show_start(self, run_dir: RunDir) -> None:
        """Show what a run does before its first update."""
        features, text = self._live(run_dir, FEATURES), WAITING
        if features is not None and features.completed < features.total:
            text = f"encoding the images of {features.completed} of {features.total} episodes"
        is_active = features is not None or len(self._runs) == 1
        self._bars.move(run_dir.name, 0, self._runs[run_dir], text, is_active)

    def _live(self, run_dir: RunDir, kind: str) -> Progress | None:
        """Return the progress of a kind that was written since the start."""
        progress = read_progress(run_dir.path, kind)
        return None if progress is None or progress.time < self._started_at else progress

    def _show(self, run_dir: RunDir, line: Mapping[str, Any]) -> None:
        """Show the latest value of every metric on a terminal, and only the new line elsewhere."""
        latest = self._latest[run_dir]
        text = format_metrics(latest if self._console.is_terminal else line)
        if text or self._console.is_terminal:  # lines of diagnostics have no text
            step = latest["step"] if self._console.is_terminal else line["step"]
            self._bars.update(run_dir.name, step, self._runs[run_dir], text)


def report_best(run_dir: RunDir, console: Console, has_simulator: bool) -> str:
    """Print the best checkpoint of a run; return the command that evaluates or exports it."""
    best = run_dir.best_checkpoint()
    console.print(f"Best checkpoint: {display_path(best.path)}", soft_wrap=True)
    console.print(f"  {format_metrics(best.metrics)}", soft_wrap=True)
    if (errors := describe_action_errors(best.metrics)) is not None:
        console.print(f"  {errors}", soft_wrap=True)
    checkpoint = display(authoritative_path(best.path))
    if not has_simulator:
        return f"export {checkpoint} my_policy"
    return f"evaluate {checkpoint} evaluate.num_episodes=100 evaluate.video=failures"


def describe_action_errors(metrics: Mapping[str, Any]) -> str | None:
    """Return a sentence about the errors in the units of the data, or None without them."""
    if ACTION_MAE not in metrics:
        return None
    hold = f"; holding the last action {metrics[HOLD_MAE]:.4g}" if HOLD_MAE in metrics else ""
    return (
        f"Mean absolute error of an action in the data's units: {metrics[ACTION_MAE]:.4g}{hold}; "
        f"the mean action {metrics[MEAN_MAE]:.4g}"
    )


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """Return the most important metrics as one line of text."""
    parts = []
    if metrics.get(RESTARTS, 0):
        parts.append(f"restart {metrics[RESTARTS]}")
    if metrics.get(INVALID_CHECKPOINTS, 0):
        parts.append(f"{metrics[INVALID_CHECKPOINTS]} invalid checkpoint(s) skipped")
    for name, template in TRAINING_FORMATS.items():
        if name in metrics:
            parts.append(template.format(metrics[name]))
    if ACTION_ERROR in metrics:
        parts.append(f"action error {metrics[ACTION_ERROR]:.4f}")
    success = describe_success(metrics)
    if success is not None:
        parts.append(f"success {success} of {metrics[NUM_EPISODES_METRIC]:.0f}")
    if VALIDATION_ERROR in metrics:
        parts.append(f"validation failed: {metrics[VALIDATION_ERROR]}")
    return "  ".join(parts)
