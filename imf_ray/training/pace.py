"""Speed of a run and regularity of its log, for estimates of the time left and for stalled runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from imf_ray.training.run_records import RESTARTS

STALLED_AFTER_S, STALLED_AFTER_INTERVALS = 300.0, 3.0
"""A run is stalled if its log has had no new line for both of these times.

The first is in seconds, the second in multiples of the run's longest interval between two lines."""
SPEED_LINES = 20
"""Number of lines of training from which the speed is estimated."""


class Pace:
    """Follows a run by the lines of its `metrics.jsonl`, in their order."""

    def __init__(self) -> None:
        self.last_time: float | None = None
        """Time of the last line in seconds since 1970; None without any."""
        self._longest_interval_s = 0.0
        self._steps: deque[tuple[float, int]] = deque(maxlen=SPEED_LINES)

    def add(self, line: Mapping[str, Any]) -> None:
        """Add the next line; lines of early versions, which have no time, do not count."""
        if "time" not in line:
            return
        if RESTARTS in line:  # the first line of a launch; the run was down before
            self._steps.clear()
        elif self.last_time is not None:
            interval_s = line["time"] - self.last_time
            self._longest_interval_s = max(self._longest_interval_s, interval_s)
        self.last_time = line["time"]
        if "loss" in line:
            self._steps.append((line["time"], int(line["step"])))

    def is_stalled(self, now: float) -> bool:
        """Return True if there has been no new line for long, at a time in seconds since 1970."""
        limit_s = max(STALLED_AFTER_S, STALLED_AFTER_INTERVALS * self._longest_interval_s)
        return self.last_time is not None and now - self.last_time >= limit_s

    def time_left_s(self, max_steps: int) -> float | None:
        """Estimate the time until the last update; None before the second line of training."""
        if len(self._steps) < 2:
            return None
        (first_time, first_step), (last_time, last_step) = self._steps[0], self._steps[-1]
        if last_step <= first_step or last_time <= first_time:
            return None
        return (max_steps - last_step) * (last_time - first_time) / (last_step - first_step)
