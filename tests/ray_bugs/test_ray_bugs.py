"""Fourteen traps of Ray 2.60 that this package goes around, each as Ray itself springs it.

When one of these fails after an upgrade, the trap is gone or has changed: look at the way around it
that the docstring names. The slow ones run under `make slow-test`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.data
import ray.train
from ray import tune
from ray.exceptions import RayActorError
from ray.train import (
    Checkpoint,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    ValidationConfig,
)
from ray.train._internal.session import get_session
from ray.train.v2._internal import constants
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.state import util
from ray.train.v2.api import data_parallel_trainer
from ray.train.v2.api.callback import UserCallback
from ray.tune.integration.ray_train import TuneReportCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group

from imf_ray.env_vars import WORKER_ENV
from imf_ray.training.placement import FaultTolerantTorchTrainer

SNAPSHOT = "checkpoint_manager_snapshot.json"
SHORT_S, LONG_S = 8.0, 60.0
pytestmark = pytest.mark.usefixtures("ray_cluster")


def train(
    loop: Callable[[], Any],
    folder: Path,
    name: str = "run",
    failures: int = 0,
    callbacks: Sequence[UserCallback] = (),
    **options: Any,
) -> Result:
    """Ray Train as its documentation shows it: one worker, no torch; it may fail so often."""
    return data_parallel_trainer.DataParallelTrainer(
        lambda config: loop(),
        train_loop_config={},
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.1}),
        run_config=RunConfig(
            name=name,
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=failures),
            callbacks=list(callbacks),
        ),
        **options,
    ).fit()


def report_checkpoint(validation: bool = False) -> None:
    """One report with a checkpoint, from a worker."""
    import tempfile

    folder = tempfile.mkdtemp()
    (Path(folder) / "weights").write_text("1")
    ray.train.report({"a": 1}, checkpoint=Checkpoint.from_directory(folder), validation=validation)


def wait_for(condition: Callable[[], bool], limit_s: float = LONG_S) -> bool:
    """Whether a condition comes true in time."""
    until = time.monotonic() + limit_s
    while not condition() and time.monotonic() < until:
        time.sleep(0.1)
    return condition()


@pytest.mark.slow
def test_1_a_grandchild_waits_for_ever_in_the_placement_group_of_a_trial(tmp_path: Path) -> None:
    """Around it: a trial has a bundle for each simulator (sweep/runner.py)."""

    def found_room(bundles: list[dict[str, float]]) -> bool:
        def trial(params: dict[str, Any]) -> None:
            @ray.remote(num_cpus=0.5)
            def simulate() -> None:
                pass

            @ray.remote(num_cpus=0)
            def validate() -> bool:
                done, _ = ray.wait([simulate.remote()], timeout=SHORT_S)
                return bool(done)

            tune.report({"found": ray.get(validate.remote())})

        (result,) = tune.Tuner(
            tune.with_resources(trial, tune.PlacementGroupFactory(bundles)),
            run_config=tune.RunConfig(name=uuid.uuid4().hex, storage_path=str(tmp_path), verbose=0),
        ).fit()
        return result.metrics["found"]

    assert not found_room([{"CPU": 0.5}])
    assert found_room([{"CPU": 0.5}, {"CPU": 0.5}])


def test_2_validation_has_no_way_to_tune() -> None:
    """Around it: reports carry what validation has written into the run's folder since."""
    hooks = {name for name in vars(UserCallback) if not name.startswith("_")}
    assert hooks == {"after_report", "after_exception"}


@pytest.mark.slow
def test_2_what_validation_finds_does_not_reach_tune(tmp_path: Path) -> None:
    """Though Ray Train knows it in the end."""
    folder = str(tmp_path)
    found = tmp_path / "found"

    def trial(params: dict[str, Any]) -> None:
        result = train(
            lambda: report_checkpoint(validation=True),
            Path(folder),
            name="inner",
            callbacks=[TuneReportCallback()],
            validation_config=ValidationConfig(
                lambda checkpoint: {"success": 1.0}, ray_remote_kwargs={"num_cpus": 0}
            ),
        )
        ((_, metrics),) = result.best_checkpoints or []
        found.write_text(" ".join(metrics))

    (result,) = tune.Tuner(
        tune.with_resources(trial, tune.PlacementGroupFactory([{"CPU": 0.1}])),
        run_config=tune.RunConfig(name="outer", storage_path=folder, verbose=0),
    ).fit()
    assert "success" in found.read_text().split()
    assert result.metrics["a"] == 1 and "success" not in result.metrics


def test_3_a_validation_that_dies_ends_the_training(tmp_path: Path) -> None:
    """Whatever `max_failures`. Around it: validation only coordinates, and is tried again."""

    def die(checkpoint: Checkpoint) -> dict[str, Any]:
        os._exit(1)

    with pytest.raises(ray.train.ControllerError):
        train(
            lambda: report_checkpoint(validation=True),
            tmp_path,
            failures=3,
            validation_config=ValidationConfig(die, ray_remote_kwargs={"num_cpus": 0}),
        )


@pytest.mark.slow
def test_4_a_checkpoint_that_is_gone_stops_the_run_at_its_start(tmp_path: Path) -> None:
    """Around it: `newest_checkpoint` reads the disk; Ray's list is thrown away."""
    train(report_checkpoint, tmp_path)
    (checkpoint,) = tmp_path.glob("run/checkpoint_*/")
    shutil.rmtree(checkpoint)
    with pytest.raises((RayActorError, ray.train.TrainingFailedError)):
        train(report_checkpoint, tmp_path)


@pytest.mark.slow
def test_4_a_damaged_checkpoint_is_handed_back_until_no_failure_is_left(tmp_path: Path) -> None:
    """Though an older one is good. Around it: `newest_checkpoint` passes over what is damaged."""
    given = str(tmp_path / "given")

    def loop() -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            report_checkpoint()
            report_checkpoint()
            return
        with checkpoint.as_directory() as folder, open(given, "a") as file:
            weights = (Path(folder) / "weights").read_text()
            file.write(f"{weights}\n")
        int(weights)

    train(loop, tmp_path)
    _, newest = sorted(tmp_path.glob("run/checkpoint_*/"))
    (newest / "weights").write_text("damaged")
    with pytest.raises(ray.train.TrainingFailedError):
        train(loop, tmp_path, failures=2)
    assert Path(given).read_text().split() == ["damaged"] * 3


@pytest.mark.slow
def test_5_a_snapshot_that_was_cut_off_stops_the_run_at_its_start(tmp_path: Path) -> None:
    """Around it: the snapshot is removed before each start (training/trainer.py)."""
    train(report_checkpoint, tmp_path)
    snapshot = tmp_path / "run" / SNAPSHOT
    snapshot.write_text(snapshot.read_text()[:20])
    with pytest.raises((RayActorError, ray.train.TrainingFailedError)):
        train(report_checkpoint, tmp_path)
    snapshot.unlink()
    train(report_checkpoint, tmp_path)


def test_6_a_report_is_committed_at_the_next_poll_only() -> None:
    """Around it: checkpoints are committed by their own rename; polls come more often."""
    assert constants.DEFAULT_HEALTH_CHECK_INTERVAL_S == 2.0
    assert constants.HEALTH_CHECK_INTERVAL_S_ENV_VAR in WORKER_ENV


def test_7_datasets_cannot_tell_where_they_are() -> None:
    """Around it: the order of samples is a function of the step (data/sampling.py)."""
    for kind in (ray.data.Dataset, ray.data.DataIterator):
        assert not hasattr(kind, "state_dict") and not hasattr(kind, "load_state_dict")


@pytest.mark.slow
def test_7_who_begins_again_begins_the_epoch_again(tmp_path: Path) -> None:
    """A worker that died after five of nine rows is given all nine."""
    seen, rows = tmp_path / "seen", 9

    def loop() -> None:
        is_first = not seen.exists()
        for number, row in enumerate(ray.train.get_dataset_shard("train").iter_rows(), start=1):
            with seen.open("a") as file:
                file.write(f"{row['id']}\n")
            if is_first and number == 5:
                os._exit(1)

    data = ray.data.range(rows, override_num_blocks=3)
    train(loop, tmp_path, failures=1, datasets={"train": data})
    given = [int(row) for row in seen.read_text().split()]
    assert len(given) == 5 + rows and sorted(given[5:]) == list(range(rows))


@pytest.mark.slow
def test_8_an_equal_split_drops_rows() -> None:
    """Around it: each rank has a dataset of its own (`PlannedDataConfig`)."""
    parts = ray.data.range(9, override_num_blocks=3).streaming_split(2, equal=True)
    seen: list[int] = []
    threads = [
        threading.Thread(target=lambda p=part: seen.extend(r["id"] for r in p.iter_rows()))
        for part in parts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8


@pytest.mark.slow
def test_9_a_token_appears_in_the_home_folder_unasked(tmp_path: Path) -> None:
    """Around it: clusters of our own set RAY_AUTH_MODE=disabled (environment.py)."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    for mode, expected in (({}, True), ({"RAY_AUTH_MODE": "disabled"}, False)):
        home = tmp_path / str(expected)
        home.mkdir()
        subprocess.run(
            [sys.executable, "-c", "import ray; ray.init(num_cpus=1, include_dashboard=False)"],
            env={**kept, **mode, "HOME": str(home)},
            check=True,
            capture_output=True,
        )
        assert (home / ".ray" / "auth_token").exists() == expected


def test_10_the_page_of_train_runs_is_empty_unless_asked_for() -> None:
    """Around it: environment.py asks; tests/test_job.py sees the page."""
    source = Path(data_parallel_trainer.__file__).read_text()
    assert "env_bool(RAY_TRAIN_ENABLE_STATE_TRACKING, False)" in source
    assert WORKER_ENV["RAY_TRAIN_ENABLE_STATE_TRACKING"] == "1"


@pytest.mark.slow
def test_11_a_trial_that_is_stopped_leaves_its_workers_place_behind(tmp_path: Path) -> None:
    """Around it: trials end themselves, and restarts free what is left (sweep/scheduling.py)."""

    def held() -> set[str]:
        table = ray.util.placement_group_table()
        return {key for key, group in table.items() if group["state"] == "CREATED"}

    before, folder = held(), str(tmp_path)

    def trial(params: dict[str, Any]) -> None:
        def loop() -> None:
            (Path(folder) / "begun").touch()
            time.sleep(LONG_S)

        driver = threading.Thread(target=train, args=(loop, Path(folder), "inner"), daemon=True)
        driver.start()
        assert wait_for((Path(folder) / "begun").exists)
        tune.report({"step": 1})
        time.sleep(LONG_S)

    tune.Tuner(
        tune.with_resources(trial, tune.PlacementGroupFactory([{"CPU": 0.1}])),
        run_config=tune.RunConfig(name="outer", storage_path=folder, verbose=0, stop={"step": 1}),
    ).fit()
    assert not wait_for(lambda: held() == before, SHORT_S)
    for group in held() - before:
        identity = ray.PlacementGroupID.from_hex(group)
        remove_placement_group(PlacementGroup(identity))


def test_12_without_a_checkpoint_a_result_has_no_metrics(tmp_path: Path) -> None:
    """Around it: the loop returns what the driver needs; the rest is in the run's folder."""

    def loop() -> int:
        ray.train.report({"a": 1})
        return 7

    result = train(loop, tmp_path)
    assert result.metrics is None and result.return_value == 7


@pytest.mark.slow
def test_13_two_ways_of_telling_tune_something_block_each_other(tmp_path: Path) -> None:
    """Around it: what a run reports goes to Tune by `tune.report` alone (sweep/trial.py)."""
    folder = str(tmp_path)

    def trial(params: dict[str, Any]) -> None:
        (Path(folder) / "pid").write_text(str(os.getpid()))
        session = get_session()
        queue = session._get_or_create_inter_actor_queue()  # as TuneReportCallback does

        def tell_too() -> None:
            while not session.result_queue.full():
                time.sleep(0.001)
            queue.put({"from": "the run"})

        threading.Thread(target=tell_too, daemon=True).start()
        tune.report({"from": "the trial"})
        (Path(folder) / "told").touch()

    tuner = tune.Tuner(
        tune.with_resources(trial, {"CPU": 0.1}),
        run_config=tune.RunConfig(name="deadlock", storage_path=folder, verbose=0),
    )
    running = threading.Thread(target=tuner.fit)
    running.start()
    assert wait_for((tmp_path / "told").exists)
    assert not wait_for(lambda: not running.is_alive(), SHORT_S)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    running.join()


def test_trap_14_silence_is_taken_for_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the state API does not know the controller, the cleaner takes its workers their place.

    A busy head answers so for a moment. `FaultTolerantTorchTrainer` does without that cleaner.
    """
    monkeypatch.setattr(util, "get_actor", lambda *_, **__: None)
    assert not util.is_actor_alive("a controller", timeout=1)

    def has_cleaner(trainer: data_parallel_trainer.DataParallelTrainer) -> bool:
        callbacks = trainer._create_default_callbacks()
        return any(isinstance(callback, PlacementGroupCleanerCallback) for callback in callbacks)

    settings = RunConfig(storage_path=str(tmp_path))
    assert has_cleaner(data_parallel_trainer.DataParallelTrainer(lambda: None, run_config=settings))
    assert not has_cleaner(FaultTolerantTorchTrainer(tmp_path, lambda: None, run_config=settings))
