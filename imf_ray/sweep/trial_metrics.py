"""Prometheus gauges of a sweep: the number of trials in each state."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ray import tune

from imf_ray.errors import UserError
from imf_ray.metrics_export import SWEEP, MetricExporter
from imf_ray.sweep.trial_record import FAILED, FINISHED, STOPPED, TrialDir

PENDING, RUNNING = "pending", "running"
STATES = (PENDING, RUNNING, FINISHED, STOPPED, FAILED)
log = logging.getLogger(__name__)


class TrialCounts(tune.Callback):
    """Tune callback that counts the trials in each of `STATES`.

    Args:
        sweep: name of the sweep.
        trials: run folder of each trial, by name.
    """

    def __init__(self, sweep: str, trials: Mapping[str, TrialDir]) -> None:
        self._exporter = MetricExporter({SWEEP: sweep})
        self._trials = trials
        self._states = dict.fromkeys(trials, PENDING)
        self._export()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Count the trial as running."""
        self._set(trial, RUNNING)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Count the trial by the status in its record; without one, the sweep was stopped."""
        try:
            record = self._trials[trial.config["trial"]].read_record(retry=False)
        except UserError as error:  # a metric must not end the sweep, which reads the record itself
            log.warning("The metrics count %s as running: %s", trial.config["trial"], error)
            return
        self._set(trial, STOPPED if record is None else record.status)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Count a trial that Tune does not restart as failed."""
        self._set(trial, FAILED)

    def _set(self, trial: Any, state: str) -> None:
        self._states[trial.config["trial"]] = state
        self._export()

    def _export(self) -> None:
        counts = Counter(self._states.values())
        for state in STATES:
            self._exporter.set({"trials": counts[state]}, state=state)
