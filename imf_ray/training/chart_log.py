"""Metrics as charts of SwanLab and TensorBoard: their names, sections and order.

`metrics.jsonl` is the record of a run. The charts show the same values under names such as
`3_train/loss`, in sections with the most important first. TensorBoard sorts sections by name, hence
their numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from imf_ray.checkpoint_dir import SUCCESS_RATE, VALIDATED_STEP
from imf_ray.config import config_to_dict, typed_options
from imf_ray.redaction import redact_options
from imf_ray.rollout.records import NUM_EPISODES_METRIC, STAGE_METRIC
from imf_ray.schema import Config
from imf_ray.training.run_records import (
    INVALID_CHECKPOINTS,
    RESTARTS,
    SKIPPED_EPISODES,
    VALIDATED,
)
from imf_ray.yaml_text import dump_value

SUCCESS, VALIDATION, TRAIN, DIAGNOSTICS, SYSTEM = (
    "1_success",
    "2_validation",
    "3_train",
    "4_diagnostics",
    "5_system",
)
SUCCESS_CHART = f"{SUCCESS}/rate"
VIDEO_CHART = f"{VALIDATION}/first_episode"
"""Name of the video of a validation's first episode."""
CHARTS = {
    SUCCESS_RATE: SUCCESS_CHART,
    "rollout/success_ci_low": f"{SUCCESS_CHART}_ci_low",
    "rollout/success_ci_high": f"{SUCCESS_CHART}_ci_high",
    "action_error": f"{VALIDATION}/action_error",
    "rollout/return_mean": f"{VALIDATION}/return_mean",
    "rollout/failed": f"{VALIDATION}/failed_episodes",
    "loss": f"{TRAIN}/loss",
    "lr": f"{TRAIN}/lr",
    "epoch": f"{SYSTEM}/epoch",
    "samples_per_s": f"{SYSTEM}/samples_per_s",
    "data_wait_frac": f"{SYSTEM}/data_wait_frac",
    "rollout/fps": f"{SYSTEM}/rollout_fps",
    RESTARTS: f"{SYSTEM}/restarts",
    INVALID_CHECKPOINTS: f"{SYSTEM}/invalid_checkpoints_skipped",
    SKIPPED_EPISODES: f"{SYSTEM}/skipped_episodes",
}
"""Chart of each metric. Others are charts of `DIAGNOSTICS`, such as gradient norms."""
FAULT_COUNTS = {RESTARTS, INVALID_CHECKPOINTS, SKIPPED_EPISODES, "rollout/failed"}
"""Numbers of faults. They have no chart while they are 0."""
NOT_SHOWN = {"step", "time", VALIDATED, VALIDATED_STEP, NUM_EPISODES_METRIC}
"""Numbers in a line of the log that need no chart."""


class ChartLog(Protocol):
    """A log of charts beside `metrics.jsonl`."""

    is_new: bool
    """True if the log has no charts of earlier launches of the run."""

    def log(self, step: int, time_s: float, values: Mapping[str, float]) -> None:
        """Log the values of charts after `step` updates; `time_s` is in seconds since 1970."""

    def log_video(self, step: int, gif: bytes, caption: str) -> None:
        """Log the video of a validation after `step` updates as `VIDEO_CHART`."""

    def close(self) -> None:
        """Write everything to disk."""


def charts(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the value of each chart, most important first, for one line of the log."""
    numbers = {
        metric: float(value)
        for metric, value in metrics.items()
        if isinstance(value, (int, float)) and metric not in NOT_SHOWN
    }
    values = {
        _chart(metric): value
        for metric, value in numbers.items()
        if value or metric not in FAULT_COUNTS
    }
    return dict(sorted(values.items(), key=lambda item: _rank(item[0])))


def _chart(metric: str) -> str:
    if metric.startswith(STAGE_METRIC):
        return f"{VALIDATION}/stage_{metric.removeprefix(STAGE_METRIC)}"
    return CHARTS.get(metric, f"{DIAGNOSTICS}/{metric}")


def _rank(chart: str) -> tuple[str, int]:
    """Return the position of a chart: its section, then its row in `CHARTS`."""
    order = list(CHARTS.values())
    return chart.partition("/")[0], order.index(chart) if chart in order else len(order)


def flat_config(config: Config) -> dict[str, bool | int | float | str]:
    """Return the values of all options by their dotted names, without secrets.

    Lists and null are text. SwanLab shows dictionaries and None as `[object Object]`, and
    TensorBoard accepts neither.
    """
    options = redact_options(typed_options(config_to_dict(config)))
    return {
        name: value if isinstance(value, (bool, int, float, str)) else dump_value(value)
        for name, value in options.items()
    }


def missing_lines(
    lines: Sequence[Mapping[str, Any]], start_step: int, is_new: bool
) -> Iterator[Mapping[str, Any]]:
    """Yield the lines of `metrics.jsonl` that a chart log lacks when a launch starts.

    Training steps after `start_step` are repeated, so a chart log drops its values of these steps.
    But their validations are not repeated. A new log lacks all other lines, too. The lines of one
    step are merged, so that each step of a chart is logged once and in order. Videos are not logged
    again.

    Args:
        start_step: step from which the launch resumes.
        is_new: see `ChartLog.is_new`.
    """
    steps: dict[int, dict[str, Any]] = {}
    for line in lines:
        is_later = line["step"] > start_step
        if VALIDATED in line if is_later else is_new:
            steps.setdefault(line["step"], {}).update(line)
    for step in sorted(steps):
        yield steps[step]
