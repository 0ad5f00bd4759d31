"""Measures the computing time of an episode by part: rendering, policy, environment steps."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

MILLISECONDS_PER_SECOND = 1e3
PERCENTILES = (50, 95)


class Timer:
    """Collects durations in milliseconds, by name."""

    def __init__(self) -> None:
        self.durations_ms: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Measure the time spent inside the `with` block and add it under `name`."""
        with self.split([self], name):
            yield

    @staticmethod
    @contextmanager
    def split(timers: Sequence[Timer], name: str, total_name: str | None = None) -> Iterator[None]:
        """Measure the time spent inside the `with` block and divide it equally among timers.

        Args:
            total_name: name under which each timer also gets the undivided time.
        """
        start = time.perf_counter()
        try:
            yield
        finally:
            spent_ms = (time.perf_counter() - start) * MILLISECONDS_PER_SECOND
            for timer in timers:
                timer.durations_ms[name].append(spent_ms / len(timers))
                if total_name is not None:
                    timer.durations_ms[total_name].append(spent_ms)

    def total_ms(self, *names: str) -> float:
        """Return the sum of all durations under these names."""
        return sum(sum(self.durations_ms.get(name, ())) for name in names)

    def timing(self, steps: int) -> dict[str, float]:
        """Return the fields of `EpisodeRecord.timing`.

        Args:
            steps: number of environment steps, over which the means are taken.
        """
        parts = ("obs_read_ms", "preprocess_ms", "inference_ms", "env_step_ms")
        timing = {name: self.total_ms(name) / max(steps, 1) for name in parts}
        episode_ms = self.total_ms("run_ms", "preprocess_ms", "inference_ms")
        timing["loop_total_ms"] = episode_ms / max(steps, 1)
        timing["wall_s"] = episode_ms / MILLISECONDS_PER_SECOND
        calls = self.durations_ms.get("call_ms", [])
        for percent in PERCENTILES if calls else ():
            timing[f"inference_ms_p{percent}"] = float(np.percentile(calls, percent))
        return timing
