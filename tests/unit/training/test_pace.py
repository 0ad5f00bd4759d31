"""Estimates from the lines of a run's log."""

from __future__ import annotations

from imf_ray.training.pace import STALLED_AFTER_S, Pace
from imf_ray.training.run_records import RESTARTS, VALIDATED


def test_the_time_left_comes_from_the_steps_since_the_last_start() -> None:
    pace = Pace()
    assert pace.time_left_s(100) is None and not pace.is_stalled(1e9)
    lines = [
        {"step": 0, RESTARTS: 0, "time": 0.0},
        {"step": 10, "loss": 1.0, "time": 100.0},
        {"step": 20, RESTARTS: 1, "time": 90_000.0},
        {"step": 30, "loss": 1.0, "time": 90_010.0},
    ]
    for line in lines:
        pace.add(line)
    assert pace.time_left_s(100) is None
    pace.add({"step": 50, "loss": 1.0, "time": 90_030.0})
    pace.add({"step": 10, VALIDATED: 1, "time": 90_060.0})  # says nothing about the speed
    assert pace.time_left_s(100) == 50.0
    assert pace.is_stalled(90_060.0 + STALLED_AFTER_S) and not pace.is_stalled(90_360.0 - 1.0)
