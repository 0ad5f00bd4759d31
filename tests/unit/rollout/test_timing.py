"""Durations of an episode."""

from __future__ import annotations

import time

import pytest

from imf_ray.rollout.timing import Timer


def test_split_divides_time_and_keeps_the_total() -> None:
    timers = [Timer(), Timer()]
    with Timer.split(timers, "inference_ms", total_name="call_ms"):
        time.sleep(0.01)
    for timer in timers:
        assert timer.total_ms("call_ms") >= 10.0
        assert timer.total_ms("inference_ms") == pytest.approx(timer.total_ms("call_ms") / 2)


def test_timing_has_means_over_steps_and_percentiles_of_calls() -> None:
    timer = Timer()
    timer.durations_ms.update({"run_ms": [6.0, 2.0], "env_step_ms": [4.0], "inference_ms": [2.0]})
    timer.durations_ms["call_ms"] = [1.0, 3.0]
    timing = timer.timing(steps=2)
    assert (timing["env_step_ms"], timing["inference_ms"], timing["obs_read_ms"]) == (2.0, 1.0, 0.0)
    assert (timing["loop_total_ms"], timing["wall_s"]) == (5.0, 0.01)
    assert timing["inference_ms_p50"] == 2.0
    assert "inference_ms_p50" not in Timer().timing(steps=0)
