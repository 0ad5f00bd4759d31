"""Metrics for Prometheus: names, tags, and values of runs, sweeps and rollouts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imf_ray import metrics_export
from imf_ray.errors import StorageError
from imf_ray.metrics_export import METRICS, Kind, MetricExporter, run_tags
from imf_ray.rollout.episode_runner import EpisodeResult
from imf_ray.rollout.policy_spec import EXPERT, PolicyKind, PolicySpec
from imf_ray.rollout.records import EpisodeRecord
from imf_ray.rollout.rollout_metrics import RolloutMetrics, policy_tags
from imf_ray.sweep.trial_metrics import TrialCounts
from imf_ray.training.gauges import GAUGES, RunGauges

Tags = tuple[tuple[str, str], ...]


class Exported:
    """Stands for Ray's metrics: the last value of gauges, sums of counters, lists of histograms."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, Tags], Any] = {}
        self.num_exports = 0

    def metric(self, name: str) -> SimpleNamespace:
        def set_(value: float, tags: Mapping[str, str]) -> None:
            self.num_exports += 1
            self.values[name, _tags(tags)] = value

        def inc(value: float, tags: Mapping[str, str]) -> None:
            self.values[name, _tags(tags)] = self.values.get((name, _tags(tags)), 0) + value

        def observe(value: float, tags: Mapping[str, str]) -> None:
            self.values.setdefault((name, _tags(tags)), []).append(value)

        return SimpleNamespace(set=set_, inc=inc, observe=observe)

    def get(self, name: str, **tags: str) -> Any:
        """Return the value of a series."""
        return self.values[name, _tags(tags)]


def _tags(tags: Mapping[str, str]) -> Tags:
    return tuple(sorted(tags.items()))


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Exported:
    exported = Exported()
    monkeypatch.setattr(metrics_export, "_ray_metric", exported.metric)
    return exported


def test_names_follow_the_conventions_of_prometheus() -> None:
    for name, metric in METRICS.items():
        assert name.isidentifier() and name.islower(), name
        assert name.endswith("_total") == (metric.kind is Kind.COUNTER), name
        assert name.endswith("_seconds") or metric.kind is not Kind.HISTOGRAM, name
        assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM), name
        assert list(metric.buckets) == sorted(metric.buckets), name
        assert metric.help.endswith("."), name


def test_every_gauge_of_the_log_is_in_the_table() -> None:
    assert all(METRICS[gauge].kind is Kind.GAUGE for gauge in GAUGES.values())


def test_two_sweeps_over_one_grid_have_different_tags(exported: Exported) -> None:
    trials = [Path(f"/runs/{sweep}/trials/00000-n_emb=16") for sweep in ("first", "second")]
    for number, trial in enumerate(trials):
        exporter = MetricExporter(run_tags(trial))
        exporter.set({"loss": number})
        exporter.close()
    assert exported.get("loss", sweep="first", trial="00000-n_emb=16") == 0
    assert exported.get("loss", sweep="second", trial="00000-n_emb=16") == 1
    assert run_tags(Path("/runs/transfer")) == {"sweep": "transfer", "trial": "transfer"}


def test_gauges_are_exported_again_until_they_are_closed(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_export, "REEXPORT_INTERVAL_S", 0.01)
    monkeypatch.setattr(metrics_export, "_gauges", metrics_export._GaugeValues())
    exporter = MetricExporter({"sweep": "s"})
    exporter.set({"trials": 3}, state="running")
    while exported.num_exports < 3:
        time.sleep(0.01)
    assert exported.get("trials", sweep="s", trial="", state="running") == 3
    exporter.set({"trials": 4}, state="running")
    exporter.close()
    assert exported.get("trials", sweep="s", trial="", state="running") == 4
    assert not metrics_export._gauges._values


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(KeyError, match="unknown"):
        MetricExporter({}).set({"unknown": 1.0})


def test_a_resumed_run_shows_its_last_validation_at_once(exported: Exported) -> None:
    lines = [
        {"step": 0, "time": 1.0, "restarts": 0, "skipped_episodes": 2},
        {"step": 10, "time": 11.0, "loss": 0.5, "lr": 1e-3},
        {"step": 20, "time": 21.0, "loss": 0.4, "lr": 1e-3},
        {"step": 10, "validated": 1.0, "validated_step": 10, "validation_error": "no memory"},
        {
            "step": 10,
            "validated": 1.0,
            "validated_step": 10,
            "rollout/success_rate": 0.25,
            "rollout/success_ci_low": 0.1,
            "rollout/success_ci_high": 0.5,
            "rollout/stage_1": 0.75,
        },
    ]
    gauges = RunGauges(Path("/runs/s/trials/t"), max_steps=100, lines=lines)
    gauges.close()
    trial = {"sweep": "s", "trial": "t"}
    expected = {
        "training_step": 20,
        "max_training_steps": 100,
        "time_left_seconds": 80.0,
        "loss": 0.4,
        "learning_rate": 1e-3,
        "success_ratio": 0.25,
        "success_ratio_low": 0.1,
        "success_ratio_high": 0.5,
        "validated_step": 10,
        "failed_validations": 1,
        "skipped_episodes": 2,
        "restarts": 0,
    }
    assert {name: exported.get(name, **trial) for name in expected} == expected
    assert exported.get("stage_ratio", **trial, stage="1") == 0.75


def test_every_episode_and_every_step_of_it_counts(exported: Exported) -> None:
    metrics = RolloutMetrics(PolicySpec(PolicyKind.CHECKPOINT, "/runs/s/trials/t/checkpoint_0010"))
    durations = {"env_step_ms": [1.0, 3.0], "call_ms": [20.0], "run_ms": [5.0]}
    for seed, (success, error) in enumerate([(True, None), (False, None), (False, "no memory")]):
        record = EpisodeRecord(
            *(seed, success, 0, 1, 0.0, 2, {}, "p", {}), error=error, timing={"wall_s": 0.5}
        )
        metrics.add(EpisodeResult(record, {}, durations))
    metrics.close()
    trial = {"sweep": "s", "trial": "t"}
    for outcome in ("success", "failure", "error"):
        assert exported.get("episodes_total", **trial, outcome=outcome) == 1
    assert exported.get("env_steps_total", **trial) == 6
    assert exported.get("env_step_seconds", **trial) == [0.001, 0.003] * 3
    assert exported.get("inference_seconds", **trial) == [0.02] * 3
    assert exported.get("episode_seconds", **trial) == [0.5] * 3


@pytest.mark.parametrize(
    ("policy", "sweep", "trial"),
    [
        (PolicySpec(PolicyKind.CHECKPOINT, "/r/s/trials/t/checkpoint_00010"), "s", "t"),
        (PolicySpec(PolicyKind.CHECKPOINT, "s3://b/s/trials/t/checkpoint_00010"), "s", "t"),
        (PolicySpec(PolicyKind.CHECKPOINT, "runs/one/checkpoint_00010"), "one", "one"),
        (PolicySpec(PolicyKind.CHECKPOINT, "policies/sim"), "sim", "sim"),
        (PolicySpec(PolicyKind.UNTRAINED, "/r/s/trials/t/checkpoint_00010"), "s", "untrained"),
        (PolicySpec(PolicyKind.REPLAY, "data/transfer"), "transfer", "replay"),
        (EXPERT, "expert", "expert"),
    ],
)
def test_a_rollout_has_the_tags_of_its_policys_run(
    policy: PolicySpec, sweep: str, trial: str
) -> None:
    assert policy_tags(policy) == {"sweep": sweep, "trial": trial}


def test_a_sweep_counts_its_trials_by_state(exported: Exported) -> None:
    def record(status: str | None) -> Any:
        result = None if status is None else SimpleNamespace(status=status)
        return SimpleNamespace(read_record=lambda retry: result)

    dirs = {"a": record("finished"), "b": record("failed"), "c": record(None), "d": record(None)}
    counts = TrialCounts("s", dirs)
    trials = {name: SimpleNamespace(config={"trial": name}) for name in dirs}
    for name in "abc":
        counts.on_trial_start(0, [], trials[name])
    for name in "ab":
        counts.on_trial_complete(0, [], trials[name])
    counts._exporter.close()
    states = {"pending": 1, "running": 1, "finished": 1, "stopped": 0, "failed": 1}
    for state, count in states.items():
        assert exported.get("trials", sweep="s", trial="", state=state) == count, state


def test_a_record_that_cannot_be_read_does_not_end_the_sweep(exported: Exported) -> None:
    def fail(retry: bool) -> None:
        raise StorageError("no network")

    counts = TrialCounts("s", {"a": SimpleNamespace(read_record=fail)})
    trial = SimpleNamespace(config={"trial": "a"})
    counts.on_trial_start(0, [], trial)
    counts.on_trial_complete(0, [], trial)
    counts._exporter.close()
    assert exported.get("trials", sweep="s", trial="", state="running") == 1
