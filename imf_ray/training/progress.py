"""Progress of runs, read from their folders: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from imf_ray.errors import UserError
from imf_ray.rollout.records import NUM_EPISODES_METRIC, describe_success
from imf_ray.storage import download
from imf_ray.training.checkpoint import VALIDATION_ERROR
from imf_ray.training.tracking import METRICS_FILE, merge_metrics

POLL_S = 1.0
TRAINING_FORMATS = {
    "epoch": "epoch {:.2f}",
    "loss": "loss {:.4f}",
    "lr": "lr {:.1e}",
    "grad_norm": "grad {:.2f}",
    "samples_per_s": "{:.0f} samples/s",
    "data_wait_frac": "data wait {:.0%}",
}


class RunProgress:
    """Shows runs while the code inside the `with` block carries them out.

    Args:
        runs: the folder of each, which need not be there yet, and its updates.
    """

    def __init__(self, runs: Mapping[Path, int], console: Console) -> None:
        self._runs, self._console = runs, console
        self._read: dict[Path, int] = {}
        self._latest: dict[Path, dict[str, Any]] = {}
        self._bars: dict[Path, TaskID] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> RunProgress:
        for run_dir in self._runs:  # what an earlier session wrote is not news
            self._new_lines(run_dir)
        self._progress.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._poll()
        self._progress.stop()

    def _watch(self) -> None:
        while not self._stop.wait(POLL_S):
            self._poll()

    def _poll(self) -> None:
        for run_dir in self._runs:
            for metrics in self._new_lines(run_dir):
                self._latest[run_dir] = merge_metrics(self._latest.get(run_dir, {}), metrics)
                self._show(run_dir, metrics)

    def _new_lines(self, run_dir: Path) -> list[dict[str, Any]]:
        path = run_dir / METRICS_FILE
        try:
            download(path)
        except UserError:  # a network that fails for a moment: the next look will tell
            return []
        if not path.is_file():
            return []
        with path.open() as file:
            file.seek(self._read.get(run_dir, 0))
            lines = []
            while (line := file.readline()).endswith("\n"):
                lines.append(json.loads(line))
                self._read[run_dir] = file.tell()
        return lines

    def _show(self, run_dir: Path, metrics: dict[str, Any]) -> None:
        latest = self._latest[run_dir]
        text = format_metrics(latest)
        if not self._console.is_terminal:
            if line := format_metrics(metrics):  # diagnostics alone are not shown
                self._console.print(
                    f"{run_dir.name}  step {metrics['step']}/{self._runs[run_dir]}  {line}",
                    soft_wrap=True,
                )
            return
        if run_dir not in self._bars:
            self._bars[run_dir] = self._progress.add_task(
                run_dir.name, total=self._runs[run_dir], text=text
            )
        self._progress.update(self._bars[run_dir], completed=latest["step"], text=text)


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """The numbers a person wants to see, in one line."""
    parts = []
    if metrics.get("restarts", 0):
        parts.append(f"restart {metrics['restarts']}")
    if metrics.get("invalid_checkpoints_skipped", 0):
        parts.append(f"{metrics['invalid_checkpoints_skipped']} bad checkpoint(s) passed over")
    for name, text in TRAINING_FORMATS.items():
        if name in metrics:
            parts.append(text.format(metrics[name]))
    if "action_error" in metrics:
        parts.append(f"action error {metrics['action_error']:.4f}")
    success = describe_success(metrics)
    if success is not None:
        parts.append(f"success {success} of {metrics[NUM_EPISODES_METRIC]:.0f}")
    if VALIDATION_ERROR in metrics:
        parts.append(f"validation failed: {metrics[VALIDATION_ERROR]}")
    return "  ".join(parts)
