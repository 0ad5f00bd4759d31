"""Logs of runs, read completely or without most lines of training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imf_ray.pages import snapshot_sweep
from imf_ray.pages.run_log import RunLog
from imf_ray.pages.snapshot import SnapshotReader
from testing_support.generated_runs import GeneratedRun, generate_sweep


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was resumed once, with 50 lines of training and validations."""
    generated = GeneratedRun(tmp_path / "run", started_at=1000.0)
    generated.add_lines(30)
    log = generated.path / "metrics.jsonl"
    with log.open("a") as file:
        file.write(json.dumps({"step": 3000, "time": 9000.0, "restarts": 1}) + "\n")
    later = GeneratedRun(tmp_path / "later", started_at=9000.0)
    later.add_lines(20)
    lines = (tmp_path / "later/metrics.jsonl").read_text().splitlines()[1:]
    with log.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)
    return generated.path


def read(run: Path, has_curves: bool) -> RunLog:
    log = RunLog(str(run))
    log.update(has_curves)
    return log


def facts(log: RunLog) -> dict[str, object]:
    """Return what a row without curves shows of a log."""
    curves = {curve.metric: list(curve.values) for curve in log.curves(300)}
    return {
        "step": log.step,
        "restarts": log.restarts,
        "wall_s": log.wall_s,
        "last_time": log.pace.last_time,
        "best": log.best_validation,
        "latest": log.latest,
        "success": curves["rollout/success_rate"],
        "action error": curves["action_error"],
    }


def test_without_curves_of_training_all_else_is_the_same(run: Path) -> None:
    whole, partial = read(run, has_curves=True), read(run, has_curves=False)
    assert facts(partial) == facts(whole)
    assert whole.restarts == 1 and facts(whole)["success"]
    num_points = [len(log.curves(300)[-1].values) for log in (partial, whole)]
    assert num_points[0] < num_points[1] / 2


def test_curves_are_completed_when_they_are_needed(run: Path) -> None:
    log = read(run, has_curves=False)
    log.update(has_curves=True)
    curves = [log.curves(300) for log in (log, read(run, has_curves=True))]
    assert [list(curve.values) for curve in curves[0]] == [
        list(curve.values) for curve in curves[1]
    ]
    assert facts(log) == facts(read(run, has_curves=True))


def test_only_the_best_ended_trials_of_many_have_whole_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_sweep, "MAX_CURVES", 1)
    trials = generate_sweep(tmp_path / "sweep", num_trials=4, num_lines=40)
    for trial in trials[:3]:
        trial.end("finished")
    reader = SnapshotReader(tmp_path / "sweep")
    ended = [trial.path.name for trial in trials[:3]]

    def num_points() -> dict[str, int]:
        rows = reader.read().rows
        points = {row.name: len(row.curves[-1].values) for row in rows}
        return {name: points[name] for name in (row.name for row in rows)}

    points = num_points()
    best = next(name for name in points if name in ended)
    assert {name for name in points if points[name] == 40} == {best, trials[3].path.name}
    record = trials[0].path.parent / next(name for name in ended if name != best) / "trial.json"
    content = json.loads(record.read_text())
    content["metrics"] |= {"rollout/success_rate": 1.0, "action_error": 0.0}
    record.write_text(json.dumps(content))
    assert num_points()[record.parent.name] == 40
