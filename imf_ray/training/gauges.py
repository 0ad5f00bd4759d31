"""What Ray's dashboard, and any Prometheus that scrapes its nodes, sees of the runs."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

from imf_ray.rollout.records import SUCCESS_RATE

GAUGES = {
    "loss": ("imf_ray_loss", "Training loss of the last logged batch."),
    "samples_per_s": ("imf_ray_samples_per_s", "Samples trained on in a second, over all workers."),
    "data_wait_frac": ("imf_ray_data_wait_frac", "Share of the time spent waiting for data."),
    "action_error": ("imf_ray_action_error", "Held-out error of the last validated checkpoint."),
    SUCCESS_RATE: ("imf_ray_success_rate", "Success of the last validated checkpoint."),
    "rollout/fps": ("imf_ray_rollout_fps", "Control steps a second of the last validation."),
    "skipped_episodes": ("imf_ray_skipped_episodes", "Episode files left out of the data set."),
    "invalid_checkpoints_skipped": (
        "imf_ray_invalid_checkpoints_skipped",
        "Bad checkpoints passed over so far.",
    ),
    "restarts": ("imf_ray_restarts", "How often the run's workers were started again."),
}
"""By metric: the gauge's name and what it tells. A tag says which run, or trial, it is of."""
RUN_TAG = "run"
REEXPORT_INTERVAL_S = 1.0


class Gauges:
    """The gauges of one run, for as long as it has them open.

    Ray hands each value that was set to its agent once, and the agent forgets it with the next
    report, mostly before Prometheus asks (Ray 2.60): values are set again and again.
    """

    def __init__(self, run: str) -> None:
        self._gauges = {}
        self._values: dict[str, float] = {}
        for metric, (name, description) in GAUGES.items():
            self._gauges[metric] = Gauge(name, description, tag_keys=(RUN_TAG,))
            self._gauges[metric].set_default_tags({RUN_TAG: run})
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)
        self._thread.start()

    def set(self, metrics: Mapping[str, Any]) -> None:
        """Set those that are among the metrics."""
        known = {name: float(metrics[name]) for name in self._gauges if name in metrics}
        self._values |= known
        self._tell(known)

    def close(self) -> None:
        """Leave them."""
        self._closed.set()
        self._thread.join()

    def _repeat(self) -> None:
        while not self._closed.wait(REEXPORT_INTERVAL_S):
            self._tell(dict(self._values))

    def _tell(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._gauges[name].set(value)
