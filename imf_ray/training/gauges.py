"""Prometheus gauges of a run, exported by Ray on every node and shown on its dashboard."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

from imf_ray.ray_internals import metric_tag
from imf_ray.rollout.records import SUCCESS_RATE

GAUGES = {
    "loss": ("imf_ray_loss", "Training loss of the last logged batch."),
    "samples_per_s": ("imf_ray_samples_per_s", "Training samples per second, over all workers."),
    "data_wait_frac": ("imf_ray_data_wait_frac", "Fraction of the time spent waiting for data."),
    "action_error": ("imf_ray_action_error", "Action error of the last validated checkpoint."),
    SUCCESS_RATE: ("imf_ray_success_rate", "Success rate of the last validated checkpoint."),
    "rollout/fps": ("imf_ray_rollout_fps", "Environment steps per second of the last validation."),
    "skipped_episodes": ("imf_ray_skipped_episodes", "Invalid episode files that were skipped."),
    "invalid_checkpoints_skipped": (
        "imf_ray_invalid_checkpoints_skipped",
        "Invalid checkpoints skipped in all launches of the run.",
    ),
    "restarts": ("imf_ray_restarts", "Number of times the run was resumed."),
}
"""Name and description of each metric's gauge."""
RUN_TAG = "run"
"""Tag of every gauge: the name of the run or trial."""
REEXPORT_INTERVAL_S = 1.0
"""Seconds between two exports of the same value."""


class Gauges:
    """The gauges of one run.

    A thread exports every value repeatedly. Ray's agent forgets a value after its next report,
    usually before Prometheus scrapes it (Ray 2.60).
    """

    def __init__(self, run: str) -> None:
        self._gauges = {}
        self._values: dict[str, float] = {}
        for metric, (name, description) in GAUGES.items():
            self._gauges[metric] = Gauge(name, description, tag_keys=(RUN_TAG,))
            self._gauges[metric].set_default_tags({RUN_TAG: metric_tag(run)})
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._export_loop, daemon=True)
        self._thread.start()

    def set(self, metrics: Mapping[str, Any]) -> None:
        """Set the gauges of these metrics. Metrics without a gauge are ignored."""
        values = {name: float(metrics[name]) for name in self._gauges if name in metrics}
        self._values |= values
        self._export(values)

    def close(self) -> None:
        """Stop exporting the values."""
        self._closed.set()
        self._thread.join()

    def _export_loop(self) -> None:
        while not self._closed.wait(REEXPORT_INTERVAL_S):
            self._export(dict(self._values))

    def _export(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._gauges[name].set(value)
