"""Prometheus gauges of a run, from the lines of its metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from imf_ray.checkpoint_dir import VALIDATED_STEP, VALIDATION_ERROR
from imf_ray.metrics_export import MetricExporter, run_tags
from imf_ray.rollout.records import STAGE_METRIC, SUCCESS_RATE
from imf_ray.training.pace import Pace
from imf_ray.training.run_records import (
    INVALID_CHECKPOINTS,
    RESTARTS,
    SKIPPED_EPISODES,
    VALIDATED,
)

GAUGES = {
    "loss": "loss",
    "lr": "learning_rate",
    "grad_norm": "gradient_norm",
    "samples_per_s": "samples_per_second",
    SUCCESS_RATE: "success_ratio",
    "rollout/success_ci_low": "success_ratio_low",
    "rollout/success_ci_high": "success_ratio_high",
    "rollout/return_mean": "episode_return",
    "action_error": "action_error",
    VALIDATED_STEP: "validated_step",
    RESTARTS: "restarts",
    INVALID_CHECKPOINTS: "invalid_checkpoints",
    SKIPPED_EPISODES: "skipped_episodes",
}
"""Gauge of each metric in the log, see `metrics_export.METRICS`. Others have no gauge."""


def gauge_values(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of the gauges of these metrics, by gauge."""
    return {gauge: float(metrics[name]) for name, gauge in GAUGES.items() if name in metrics}


class RunGauges:
    """The gauges of one run.

    Args:
        run: the run's folder, whose name and sweep are tags.
        lines: the lines of the log so far, whose latest values are exported at once.
    """

    def __init__(self, run: Path, max_steps: int, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        self._exporter = MetricExporter(run_tags(run))
        self._max_steps, self._pace = max_steps, Pace()
        self._values: dict[str, float] = {"max_training_steps": max_steps, "failed_validations": 0}
        self._stages: dict[str, float] = {}
        for line in lines:
            self._read(line)
        self._export()

    def add(self, line: Mapping[str, Any]) -> None:
        """Set the gauges of one line of the log."""
        self._read(line)
        self._export()

    def close(self) -> None:
        """Stop exporting the gauges."""
        self._exporter.close()

    def _read(self, line: Mapping[str, Any]) -> None:
        self._values |= gauge_values(line)
        if VALIDATION_ERROR in line:
            self._values["failed_validations"] += 1
        if VALIDATED not in line:  # the step of a validation is that of an earlier checkpoint
            self._values["training_step"] = line["step"]
            self._pace.add(line)
            time_left_s = self._pace.time_left_s(self._max_steps)
            if time_left_s is not None:
                self._values["time_left_seconds"] = time_left_s
        for name, share in line.items():
            if name.startswith(STAGE_METRIC):
                self._stages[name.removeprefix(STAGE_METRIC)] = share

    def _export(self) -> None:
        self._exporter.set(self._values)
        for stage, share in self._stages.items():
            self._exporter.set({"stage_ratio": share}, stage=stage)
