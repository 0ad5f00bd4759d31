"""The log of a run, `metrics.jsonl`, read line by line as it grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imf_ray.checkpoint_dir import (
    SUCCESS_RATE,
    VALIDATED_STEP,
    VALIDATION_ERROR,
    checkpoint_rank_key,
)
from imf_ray.files import read_json_lines
from imf_ray.folders import METRICS_FILE
from imf_ray.pages.curve_log import CurveLog
from imf_ray.pages.file_cache import Version, file_version
from imf_ray.pages.model import Curve
from imf_ray.training.pace import Pace
from imf_ray.training.run_records import RESTARTS, VALIDATED, merge_metrics, parse_metrics

SPEED = "samples_per_s"
TRAINING_METRICS = ("loss", "lr", SPEED)
"""Metrics of training with a curve."""
ACTION_ERROR = "action_error"
SUCCESS_BOUNDS = ("rollout/success_ci_low", "rollout/success_ci_high")

NUM_LAST_LINES = 3
"""Number of lines at the end of a log that are read in any case."""
_VALIDATION, _START = (f'"{name}"'.encode() for name in (VALIDATED, RESTARTS))


class RunLog:
    """What the pages show of a run's log.

    Args:
        run: local folder of the run.
    """

    def __init__(self, run: str) -> None:
        self._path = Path(run, METRICS_FILE)
        self._version: Version | None = None
        self._reset()

    def _reset(self) -> None:
        self._offset = 0
        self._has_gaps = False
        self.num_damaged = 0
        self.latest: dict[str, Any] = {}
        """The latest value of each metric."""
        self.best_validation: dict[str, Any] | None = None
        """Metrics of the validation that ranks first, with the step of its checkpoint."""
        self.wall_s = 0.0
        """Time between the first and the last line of each launch, summed."""
        self.pace = Pace()
        self._curves = {
            SUCCESS_RATE: CurveLog(SUCCESS_RATE, has_interval=True),
            ACTION_ERROR: CurveLog(ACTION_ERROR),
            **{metric: CurveLog(metric) for metric in TRAINING_METRICS},
        }

    def update(self, has_curves: bool = True) -> None:
        """Read the lines that were added. A file that shrank or was replaced is read again.

        Args:
            has_curves: False leaves out most lines of training. The curves of training then have
                gaps, and damaged lines are not counted. This takes a third of the time.
        """
        version = file_version(self._path)
        if has_curves and self._has_gaps:
            self._version = None  # read it all
        if version == self._version:
            return
        known, self._version = self._version, version
        if version is None or known is None or version[1] < self._offset or version[2] != known[2]:
            self._reset()
        self._has_gaps = self._has_gaps or not has_curves
        select = None if has_curves else _important_lines
        lines = read_json_lines(self._path, parse_metrics, self._offset, select)
        self._offset = lines.end
        self.num_damaged += lines.num_invalid
        for line in lines.rows:
            self._add(line)

    @property
    def step(self) -> int:
        """Number of updates at the last line of training."""
        return int(self.latest.get("step", 0))

    @property
    def restarts(self) -> int:
        """Number of times the run was resumed."""
        return int(self.latest.get(RESTARTS, 0))

    @property
    def median_speed(self) -> float | None:
        """Median of the samples per second of training; None before the first line of it."""
        return self._curves[SPEED].median

    def curves(self, max_points: int) -> list[Curve]:
        """Return the curves of all metrics that have values."""
        curves = [log.curve(max_points) for log in self._curves.values()]
        return [curve for curve in curves if curve is not None]

    def _add(self, line: Mapping[str, Any]) -> None:
        before = self.pace.last_time
        self.pace.add(line)
        if before is not None and self.pace.last_time is not None and RESTARTS not in line:
            self.wall_s += max(0.0, self.pace.last_time - before)
        self.latest = merge_metrics(self.latest, line)
        step = int(line["step"])
        if VALIDATED in line:
            self._add_validation(int(line.get(VALIDATED_STEP, step)), line)
            return
        for metric in TRAINING_METRICS:
            if metric in line:
                self._curves[metric].append(step, line[metric])

    def _add_validation(self, step: int, line: Mapping[str, Any]) -> None:
        if VALIDATION_ERROR in line:
            return
        metrics = {**line, "step": step}
        best = self.best_validation
        if best is None or checkpoint_rank_key(metrics) < checkpoint_rank_key(best):
            self.best_validation = metrics
        if ACTION_ERROR in line:
            self._curves[ACTION_ERROR].insert(step, line[ACTION_ERROR], 0.0, 0.0)
        if {SUCCESS_RATE, *SUCCESS_BOUNDS} <= line.keys():
            low, high = (line[name] for name in SUCCESS_BOUNDS)
            self._curves[SUCCESS_RATE].insert(step, line[SUCCESS_RATE], low, high)


def _important_lines(lines: Sequence[bytes]) -> set[int]:
    """Return the indices of validations, of starts and the lines before them, and the last ones."""
    validations = {index for index, line in enumerate(lines) if _VALIDATION in line}
    starts = {index for index, line in enumerate(lines) if _START in line}
    ends = {index - 1 for index in starts}
    return validations | starts | ends | {*range(len(lines))[-NUM_LAST_LINES:]}
