"""Metrics of runs, sweeps, rollouts and data for Prometheus, exported by Ray's agent on every node.

Prometheus sees each metric of `METRICS` under the name `ray_imf_ray_NAME`. The Grafana dashboards
in `deploy/monitoring` show them.

Every metric has the tags `sweep` and `trial`. A single run is a sweep with one trial of the same
name. Ray adds tags of its own: the process (`WorkerId`), the node and the Ray session.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from imf_ray.folders import TRIALS_DIR
from imf_ray.ray_internals import metric_tag

PREFIX = "imf_ray_"
"""Prefix of every name in `METRICS`. Ray puts `ray_` before it."""
SWEEP, TRIAL, RANK, STAGE, STATE, OUTCOME = "sweep", "trial", "rank", "stage", "state", "outcome"
"""Tags."""
REEXPORT_INTERVAL_S = 1.0
"""Seconds between two exports of a gauge's value.

Ray's agent forgets a value after two report intervals, 20 s by default (Ray 2.60).
"""
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Upper limits of histogram buckets for steps and calls."""
LONG_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)
"""Upper limits of histogram buckets for episodes, checkpoints and validations."""


class Kind(StrEnum):
    """Prometheus' type of a metric."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """One metric."""

    kind: Kind
    help: str
    tags: tuple[str, ...] = ()
    """Tags in addition to `SWEEP` and `TRIAL`."""
    buckets: tuple[float, ...] = ()
    """Upper limits of the buckets of a histogram."""


def _gauge(help: str, *tags: str) -> Metric:
    return Metric(Kind.GAUGE, help, tags)


def _counter(help: str, *tags: str) -> Metric:
    return Metric(Kind.COUNTER, help, tags)


def _histogram(help: str, *tags: str, buckets: tuple[float, ...] = SECONDS) -> Metric:
    return Metric(Kind.HISTOGRAM, help, tags, buckets)


METRICS: Mapping[str, Metric] = {
    # A sweep, from its driver
    "trials": _gauge("Number of trials in a state.", STATE),
    # A run or trial, from rank 0
    "training_step": _gauge("Number of updates made."),
    "max_training_steps": _gauge("Number of updates of the whole run."),
    "time_left_seconds": _gauge("Estimated time to the last update, at the current speed."),
    "samples_per_second": _gauge("Training samples per second, over all ranks."),
    "loss": _gauge("Training loss of the last logged batch."),
    "learning_rate": _gauge("Learning rate."),
    "gradient_norm": _gauge("Norm of the gradient before clipping."),
    "success_ratio": _gauge("Success rate of the last validation."),
    "success_ratio_low": _gauge("Lower limit of the success rate's 95 % interval."),
    "success_ratio_high": _gauge("Upper limit of the success rate's 95 % interval."),
    "stage_ratio": _gauge("Fraction of the episodes that reached a stage of the task.", STAGE),
    "episode_return": _gauge("Mean over the validation's episodes of the summed reward."),
    "action_error": _gauge("Error of predicted actions on held-out episodes."),
    "validated_step": _gauge("Training step of the last validated checkpoint."),
    "restarts": _gauge("Number of times that the run was resumed."),
    "invalid_checkpoints": _gauge("Invalid checkpoints skipped in all launches of the run."),
    "skipped_episodes": _gauge("Invalid episode files that were skipped."),
    "failed_validations": _gauge("Validations that failed in all launches of the run."),
    "checkpoint_seconds": _histogram("Time to save a checkpoint.", buckets=LONG_SECONDS),
    # Each rank of a run or trial
    "training_step_seconds": _histogram(
        "Time of a training step with the wait for its batch, logging and saving.", RANK
    ),
    "data_wait_seconds": _histogram("Time that a training step waited for its batch.", RANK),
    "data_wait_ratio": _gauge("Fraction of the time spent waiting for data.", RANK),
    "data_queued_blocks": _gauge("Blocks that are read but not yet taken by the rank.", RANK),
    "gpu_memory_bytes": _gauge("Largest amount of GPU memory that PyTorch had allocated.", RANK),
    # Reading of data, from the processes of the read tasks
    "data_read_seconds": _histogram("Time to read and decode one segment of an episode.", RANK),
    "data_read_bytes_total": _counter("Bytes of decoded segments.", RANK),
    # Rollouts, from the process that assigns the episodes
    "validation_seconds": _histogram("Time of a validation.", buckets=LONG_SECONDS),
    "episodes_total": _counter("Episodes that ended: success, failure or error.", OUTCOME),
    "env_steps_total": _counter("Environment steps of the episodes that ended."),
    "episode_seconds": _histogram("Computing time of an episode.", buckets=LONG_SECONDS),
    "env_step_seconds": _histogram("Time of an environment step, without rendering."),
    "render_seconds": _histogram("Time to render the images of an observation."),
    "inference_seconds": _histogram("Time of one call of the policy for a batch of episodes."),
    "rollout_actors": _gauge("Rollout actors that run episodes."),
    "waiting_episodes": _gauge("Episodes that wait for a free rollout actor."),
    "lost_rollout_actors_total": _counter("Rollout actors that died or were stuck."),
}
"""All metrics, by name without `PREFIX`."""


def run_tags(run: Path) -> dict[str, str]:
    """Return the tags of a run's folder: the names of its sweep and of the run itself."""
    is_trial = run.parent.name == TRIALS_DIR
    return {SWEEP: run.parent.parent.name if is_trial else run.name, TRIAL: run.name}


class MetricExporter:
    """Exports metrics with the same tags from this process.

    Args:
        tags: values of `SWEEP`, `TRIAL` and further tags. A metric without one of them ignores it.
    """

    def __init__(self, tags: Mapping[str, str]) -> None:
        self._tags = dict(tags)
        self._series: set[_Series] = set()

    def set(self, values: Mapping[str, float], **tags: str) -> None:
        """Set gauges, by name. They are exported until `close` or the end of the process."""
        for name, value in values.items():
            series = (name, self._key(name, tags))
            self._series.add(series)
            _gauges.set(series, float(value))

    def count(self, name: str, amount: float = 1.0, **tags: str) -> None:
        """Increase a counter."""
        if amount > 0:
            _ray_metric(name).inc(amount, dict(self._key(name, tags)))

    def observe(self, name: str, *values: float, **tags: str) -> None:
        """Add values to a histogram."""
        metric, key = _ray_metric(name), dict(self._key(name, tags))
        for value in values:
            metric.observe(value, key)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time of the `with` block to a histogram, also if the block raises an error."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.observe(name, time.perf_counter() - start)

    def close(self) -> None:
        """Export the gauges once more, and stop exporting them."""
        _gauges.remove(self._series)
        self._series = set()

    def _key(self, name: str, tags: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        """Return the values of the metric's tags; a tag that is not known is empty."""
        values = {**self._tags, **tags}
        return tuple((tag, metric_tag(values.get(tag, ""))) for tag in _tag_keys(name))


_Series = tuple[str, tuple[tuple[str, str], ...]]
"""Name and tags of a gauge."""


class _GaugeValues:
    """The gauges of this process. One thread exports all of them repeatedly."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[_Series, float] = {}
        self._thread: threading.Thread | None = None

    def set(self, series: _Series, value: float) -> None:
        _ray_metric(series[0])  # an unknown name is an error of the caller, not of the thread
        with self._lock:
            self._values[series] = value
            if self._thread is None:
                self._thread = threading.Thread(target=self._export_loop, daemon=True)
                self._thread.start()

    def remove(self, all_series: Iterable[_Series]) -> None:
        with self._lock:
            values = {s: self._values.pop(s) for s in all_series if s in self._values}
        self._export(values)

    def _export_loop(self) -> None:
        while True:
            with self._lock:
                values = dict(self._values)
            self._export(values)
            time.sleep(REEXPORT_INTERVAL_S)

    def _export(self, values: Mapping[_Series, float]) -> None:
        for (name, tags), value in values.items():
            _ray_metric(name).set(value, dict(tags))


_gauges = _GaugeValues()


def _tag_keys(name: str) -> tuple[str, ...]:
    return (SWEEP, TRIAL, *METRICS[name].tags)


@cache
def _ray_metric(name: str) -> Any:
    """Return Ray's metric object, which is made once in each process."""
    from ray.util.metrics import Counter, Gauge, Histogram

    metric = METRICS[name]
    if metric.kind is Kind.GAUGE:
        return Gauge(PREFIX + name, metric.help, tag_keys=_tag_keys(name))
    if metric.kind is Kind.COUNTER:
        return Counter(PREFIX + name, metric.help, tag_keys=_tag_keys(name))
    buckets = list(metric.buckets)
    return Histogram(PREFIX + name, metric.help, boundaries=buckets, tag_keys=_tag_keys(name))
