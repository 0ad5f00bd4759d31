"""State of a run according to its log, and durations in words."""

from __future__ import annotations

from imf_ray.sweep.trial_record import FINISHED
from imf_ray.training.pace import Pace

PENDING, RUNNING, STALLED = "pending", "running", "stalled"


def run_state(pace: Pace, now: float, trained: bool) -> str:
    """Return the state of a run without a record, at a time in seconds since 1970."""
    if pace.last_time is None:
        return PENDING
    if trained:
        return FINISHED
    return STALLED if pace.is_stalled(now) else RUNNING


def format_duration(seconds: float) -> str:
    """Return a duration in its largest unit, such as `3 min`."""
    for unit, unit_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"
