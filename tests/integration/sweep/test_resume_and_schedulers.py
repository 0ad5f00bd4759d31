"""Sweeps that are stopped by their scheduler, and which one goes on."""

from __future__ import annotations

import dataclasses
import errno
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from imf_ray.cluster import ClusterSize
from imf_ray.errors import UserError
from imf_ray.files import append_line
from imf_ray.sweep.runner import (
    TrialCleanupCallback,
    allocate_sweep,
    find_resumable_sweep,
    load_saved_space,
    prepare_sweep,
    run_sweep,
)
from imf_ray.sweep.schedulers import make_scheduler
from imf_ray.sweep.search_space import SearchSpace
from imf_ray.sweep.trial import FAILED, FINISHED, STOPPED, TrialRecord, read_trial, write_trial
from imf_ray.training.checkpoint import VALIDATIONS, list_checkpoints
from imf_ray.training.stop_signal import clear_stop, stop_requested
from imf_ray.training.tracking import METRICS_FILE
from tests.helpers.configs import LOGICAL_CPUS, TINY_AGENT, TINY_TRAINING

AGENT = "agent=resnet_imf_attnres_multitoken"
SPACE = SearchSpace(
    "two",
    grid={"train.seed": [1, 2]},
    scheduler={"asha": {"grace_period": 2, "reduction_factor": 2}},
)
PATIENCE_S = 1200.0


def wait_for(condition: object) -> float:
    """Wait until a function is true; return how long that took."""
    start = time.monotonic()
    while not condition():  # type: ignore[operator]
        assert time.monotonic() - start < PATIENCE_S
        time.sleep(0.05)
    return time.monotonic() - start


def judged(step: int, success: float) -> str:
    return json.dumps({"step": step, "rollout/success_rate": success}) + "\n"


@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_that_falls_behind_is_stopped_and_frees_its_workers(
    demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late validations reach the scheduler, and so do those of a trial that ended before.

    Tune's own loop fails once, and begins again.
    """
    options = [
        *(o for o in TINY_TRAINING if "max_steps" not in o),
        *(AGENT, *TINY_AGENT, f"data.dataset_dir={demonstrations}"),
        *("train.max_steps=1000", "train.save_freq=2", "tune.max_concurrent_trials=1"),
        "train.rollout_val_freq_epochs=1000",  # validations are what this test writes
    ]
    sweep = prepare_sweep(SPACE, options, tmp_path / "sweep")
    good, bad = (sweep.run_dir(name) for name in sweep.configs)
    write_trial(TrialRecord(good.name, {}, FINISHED, {"step": 2}, "kept", str(good)))
    validated(good, at=1.0, step=2, success=1.0)
    known = (good / METRICS_FILE).read_text()

    def judge_badly() -> None:
        wait_for(lambda: list(bad.glob("checkpoint_0*")))
        (bad / VALIDATIONS).write_text(judged(2, success=0.0))

    errors = [OSError(errno.ENOSPC, "No space left on device")]  # of Ray's own disk, in Tune's loop

    def fail_once(*_: Any, **__: Any) -> None:
        if errors:
            raise errors.pop()

    monkeypatch.setattr(TrialCleanupCallback, "on_trial_result", fail_once, raising=False)
    judge = threading.Thread(target=judge_badly)
    judge.start()
    size = ClusterSize(((float(LOGICAL_CPUS), 0.0),))
    resources, slots = allocate_sweep(sweep, size)
    before = ray.available_resources()["CPU"]
    records = run_sweep(sweep, resources, slots)
    judge.join()

    assert not errors
    assert [record.status for record in records] == [FINISHED, STOPPED]
    assert records[1] == read_trial(bad)
    assert records[1].best_checkpoint == str(list_checkpoints(bad)[-1].path)
    assert records[1].workers and records[1].metrics["step"] >= 2
    assert (good / METRICS_FILE).read_text() == known  # it was not trained again
    wait_for(lambda: ray.available_resources().get("CPU") == before)

    with pytest.raises(UserError, match="started with another search space, two"):
        prepare_sweep(dataclasses.replace(SPACE, name="three"), options, tmp_path / "sweep")


def test_which_sweep_goes_on(tmp_path: Path) -> None:
    assert (
        find_resumable_sweep(tmp_path, None) is None and find_resumable_sweep(tmp_path, "a") is None
    )
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        content = {"space": dataclasses.asdict(SPACE), "overrides": ["train.lr=1"]}
        (tmp_path / name / "space.json").write_text(json.dumps(content))
        time.sleep(0.02)
    assert find_resumable_sweep(tmp_path, None) == tmp_path / "b"
    for status, failed_validation_steps, newest in (
        (FAILED, [], "b"),
        (FINISHED, [2], "b"),
        (FINISHED, [], "a"),
        (STOPPED, [2], "a"),
    ):
        ended = TrialRecord(
            "00000-lr_1", {"train.lr": 1}, status, failed_validation_steps=failed_validation_steps
        )
        content = {"trials": [dataclasses.asdict(ended)], "baselines": {}}
        (tmp_path / "b" / "sweep.json").write_text(json.dumps(content))
        assert find_resumable_sweep(tmp_path, None) == tmp_path / newest
    assert find_resumable_sweep(tmp_path, "b") == tmp_path / "b"
    assert load_saved_space(tmp_path / "a") == (SPACE, ["train.lr=1"])


def validated(run_dir: Path, at: float, step: int, success: float) -> None:
    found = {"step": step, "time": at, "validated_step": step, "rollout/success_rate": success}
    append_line(run_dir / METRICS_FILE, json.dumps(found))


def test_history_is_told_in_the_order_in_which_it_was_found(tmp_path: Path) -> None:
    """The first at a rung was kept, whatever came there later; a pending request is made again.

    Who has come to the end is not asked to stop, though the scheduler has done with it.
    """
    run_dirs = {name: tmp_path / name for name in "abc"}
    validated(run_dirs["b"], at=2.0, step=1000, success=0.5)
    validated(run_dirs["a"], at=1.0, step=1000, success=0.3)
    validated(run_dirs["c"], at=3.0, step=1000, success=0.1)
    validated(run_dirs["b"], at=4.0, step=6000, success=0.5)
    make_scheduler({"asha": {"grace_period": 1000, "reduction_factor": 2}}, 6000, run_dirs)
    assert [name for name, folder in run_dirs.items() if stop_requested(folder)] == ["c"]


@pytest.mark.parametrize(
    "spec",
    [
        {"median_stopping": {"grace_period": 1, "min_samples_required": 2}},
        {"asha": {"grace_period": 1, "reduction_factor": 2}},
    ],
)
def test_the_scheduler_stops_who_falls_behind_and_takes_any_report(
    tmp_path: Path, spec: dict[str, dict[str, Any]]
) -> None:
    run_dirs = {name: tmp_path / name for name in "abc"}
    for folder in run_dirs.values():
        folder.mkdir()
    scheduler = make_scheduler(spec, 100, run_dirs)
    for step in (1, 2, 3):
        for name, success in (("a", 0.9), ("b", 0.8), ("c", 0.1)):
            report = {"validated_step": step, "rollout/success_rate": success}
            for result in (report, {"loss": 1.0}, {**report, "done": True}):
                assert scheduler.on_trial_result(None, name, result) == "CONTINUE"
            scheduler.on_trial_complete(None, name, {"status": "finished"})
    assert stop_requested(run_dirs["c"]) and not stop_requested(run_dirs["a"])
    write_trial(TrialRecord("c", {}, STOPPED, run_dir=str(run_dirs["c"])))
    clear_stop(run_dirs["c"])
    scheduler.on_trial_result(None, "c", {"loss": 1.0})
    assert not stop_requested(run_dirs["c"])


def no_space(_: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_storage_that_fails_for_a_moment_does_not_end_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dirs = {name: tmp_path / name for name in "ab"}
    for folder in run_dirs.values():
        folder.mkdir()
    spec = {"asha": {"grace_period": 1, "reduction_factor": 2}}
    scheduler = make_scheduler(spec, 100, run_dirs)
    monkeypatch.setattr("pathlib.Path.touch", no_space)
    for name, success in (("a", 0.9), ("b", 0.1)):
        report = {"validated_step": 1, "rollout/success_rate": success}
        assert scheduler.on_trial_result(None, name, report) == "CONTINUE"
    monkeypatch.undo()
    assert scheduler.on_trial_result(None, "b", {"loss": 1.0}) == "CONTINUE"
    assert stop_requested(run_dirs["b"])
