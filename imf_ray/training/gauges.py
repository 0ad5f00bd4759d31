"""What Ray's dashboard, and any Prometheus that scrapes its nodes, sees of the runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

from imf_ray.rollout.records import SUCCESS_RATE

GAUGES = {
    "loss": ("imf_ray_loss", "Training loss of the last logged batch."),
    "samples_per_s": ("imf_ray_samples_per_s", "Samples trained on in a second, over all workers."),
    "data_wait": ("imf_ray_data_wait", "Share of the time spent waiting for data."),
    "action_error": ("imf_ray_action_error", "Held-out error of the last validated checkpoint."),
    SUCCESS_RATE: ("imf_ray_success_rate", "Success of the last validated checkpoint."),
    "rollout/fps": ("imf_ray_rollout_fps", "Control steps a second of the last validation."),
    "bad_episodes": ("imf_ray_bad_episodes", "Episode files left out of the data set."),
    "checkpoint_fallbacks": ("imf_ray_checkpoint_fallbacks", "Bad checkpoints passed over so far."),
    "restarts": ("imf_ray_restarts", "How often the run's workers were started again."),
}
"""By metric: the gauge's name and what it tells. A tag says which run, or trial, it is of."""
RUN_TAG = "run"


class Gauges:
    """The gauges of one run."""

    def __init__(self, run: str) -> None:
        self._gauges = {}
        for metric, (name, description) in GAUGES.items():
            self._gauges[metric] = Gauge(name, description, tag_keys=(RUN_TAG,))
            self._gauges[metric].set_default_tags({RUN_TAG: run})

    def set(self, metrics: Mapping[str, Any]) -> None:
        """Set those that are among the metrics."""
        for metric, gauge in self._gauges.items():
            if metric in metrics:
                gauge.set(float(metrics[metric]))
