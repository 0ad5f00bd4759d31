"""Where the time of an episode goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

MILLISECONDS = 1e3
PERCENTILES = (50, 95)


class Timer:
    """Durations by name, in milliseconds."""

    def __init__(self) -> None:
        self.laps: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        """Add the time spent inside under `name`."""
        with self.shared([self], name):
            yield

    @staticmethod
    @contextmanager
    def shared(watches: Sequence[Timer], name: str, whole: str | None = None) -> Iterator[None]:
        """Divide the time spent inside among several; each has all of it under `whole`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = (time.perf_counter() - start) * MILLISECONDS
            for watch in watches:
                watch.laps[name].append(spent / len(watches))
                if whole is not None:
                    watch.laps[whole].append(spent)

    def total_ms(self, *names: str) -> float:
        """The sum over these names."""
        return sum(sum(self.laps.get(name, ())) for name in names)

    def timing(self, steps: int) -> dict[str, float]:
        """RoboIMI's fields: means over the control steps, and percentiles of the policy's calls."""
        parts = ("obs_read_ms", "preprocess_ms", "inference_ms", "env_step_ms")
        timing = {name: self.total_ms(name) / max(steps, 1) for name in parts}
        own_ms = self.total_ms("play_ms", "preprocess_ms", "inference_ms")
        timing["loop_total_ms"] = own_ms / max(steps, 1)
        timing["wall_s"] = own_ms / MILLISECONDS
        calls = self.laps.get("call_ms", [])
        for percent in PERCENTILES if calls else ():
            timing[f"inference_ms_p{percent}"] = float(np.percentile(calls, percent))
        return timing
