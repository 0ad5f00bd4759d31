"""Fourteen faults of Ray 2.60 that this package works around, each reproduced with Ray alone.

If one of these tests fails after an upgrade, the fault is fixed or has changed: look at the
workaround that the docstring names. The slow ones run with `make slow-test`.
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
from imf_ray.training.fault_tolerance import FaultTolerantTorchTrainer
from imf_ray.training.run_dir import RAY_SNAPSHOT_FILE, RunDir

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
    """Run Ray Train as its documentation shows it, with one worker and without torch.

    Args:
        failures: number of failures that are retried.
    """
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
    """Report a checkpoint from a worker."""
    import tempfile

    folder = tempfile.mkdtemp()
    (Path(folder) / "weights").write_text("1")
    ray.train.report({"a": 1}, checkpoint=Checkpoint.from_directory(folder), validation=validation)


def wait_for(condition: Callable[[], bool], timeout_s: float = LONG_S) -> bool:
    """True if a condition becomes true in time."""
    until = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < until:
        time.sleep(0.1)
    return condition()


@pytest.mark.slow
def test_1_a_grandchild_waits_forever_in_the_placement_group_of_a_trial(tmp_path: Path) -> None:
    """Workaround: a trial has a bundle for each rollout actor (sweep/runner.py)."""

    def is_scheduled(bundles: list[dict[str, float]]) -> bool:
        def trial(params: dict[str, Any]) -> None:
            @ray.remote(num_cpus=0.5)
            def simulate() -> None:
                pass

            @ray.remote(num_cpus=0)
            def validate() -> bool:
                done, _ = ray.wait([simulate.remote()], timeout=SHORT_S)
                return bool(done)

            tune.report({"scheduled": ray.get(validate.remote())})

        (result,) = tune.Tuner(
            tune.with_resources(trial, tune.PlacementGroupFactory(bundles)),
            run_config=tune.RunConfig(name=uuid.uuid4().hex, storage_path=str(tmp_path), verbose=0),
        ).fit()
        return result.metrics["scheduled"]

    assert not is_scheduled([{"CPU": 0.5}])
    assert is_scheduled([{"CPU": 0.5}, {"CPU": 0.5}])


def test_2_there_is_no_hook_for_validations() -> None:
    """Workaround: reports contain the validations that ended since (training/reporting.py)."""
    hooks = {name for name in vars(UserCallback) if not name.startswith("_")}
    assert hooks == {"after_report", "after_exception"}


@pytest.mark.slow
def test_2_validation_metrics_do_not_reach_tune(tmp_path: Path) -> None:
    """Ray Train itself has them in its result."""
    folder = str(tmp_path)
    metric_names = tmp_path / "metric_names"

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
        metric_names.write_text(" ".join(metrics))

    (result,) = tune.Tuner(
        tune.with_resources(trial, tune.PlacementGroupFactory([{"CPU": 0.1}])),
        run_config=tune.RunConfig(name="outer", storage_path=folder, verbose=0),
    ).fit()
    assert "success" in metric_names.read_text().split()
    assert result.metrics["a"] == 1 and "success" not in result.metrics


@pytest.mark.slow
def test_3_a_killed_validation_ends_training(tmp_path: Path) -> None:
    """It does so with any `max_failures`.

    Workaround: validation only coordinates other tasks, and is retried (training/trainer.py).
    """

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
def test_4_a_missing_checkpoint_prevents_a_resume(tmp_path: Path) -> None:
    """Workaround: `RunDir.newest_checkpoint` reads the folder; Ray's list is deleted."""
    train(report_checkpoint, tmp_path)
    (checkpoint,) = tmp_path.glob("run/checkpoint_*/")
    shutil.rmtree(checkpoint)
    with pytest.raises((RayActorError, ray.train.TrainingFailedError)):
        train(report_checkpoint, tmp_path)


@pytest.mark.slow
def test_4_a_damaged_checkpoint_is_given_until_retries_are_used_up(tmp_path: Path) -> None:
    """An older one is valid.

    Workaround: `RunDir.newest_checkpoint` skips damaged checkpoints.
    """
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
def test_5_an_incomplete_snapshot_prevents_a_resume(tmp_path: Path) -> None:
    """Workaround: it is deleted before each start (training/fault_tolerance.py)."""
    train(report_checkpoint, tmp_path)
    snapshot = tmp_path / "run" / RAY_SNAPSHOT_FILE
    snapshot.write_text(snapshot.read_text()[:20])
    with pytest.raises((RayActorError, ray.train.TrainingFailedError)):
        train(report_checkpoint, tmp_path)
    snapshot.unlink()
    train(report_checkpoint, tmp_path)


def test_6_a_report_is_only_committed_at_the_next_poll() -> None:
    """Workaround: a checkpoint counts once its folder is renamed, and polls are more frequent."""
    assert constants.DEFAULT_HEALTH_CHECK_INTERVAL_S == 2.0
    assert constants.HEALTH_CHECK_INTERVAL_S_ENV_VAR in WORKER_ENV


def test_7_datasets_have_no_state() -> None:
    """Workaround: the order of samples is a function of the step (data/sampling.py)."""
    for kind in (ray.data.Dataset, ray.data.DataIterator):
        assert not hasattr(kind, "state_dict") and not hasattr(kind, "load_state_dict")


@pytest.mark.slow
def test_7_a_restarted_worker_repeats_its_epoch(tmp_path: Path) -> None:
    """A worker that died after five of nine rows reads all nine again."""
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
    row_ids = [int(row) for row in seen.read_text().split()]
    assert len(row_ids) == 5 + rows and sorted(row_ids[5:]) == list(range(rows))


@pytest.mark.slow
def test_8_an_equal_split_drops_rows() -> None:
    """Workaround: each rank has its own dataset (`TrainDataset.rank_dataset`)."""
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
def test_9_an_auth_token_is_written_into_the_home_folder(tmp_path: Path) -> None:
    """Workaround: local clusters set RAY_AUTH_MODE=disabled (env_vars.py)."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    for mode, expected in (({}, True), ({"RAY_AUTH_MODE": "disabled"}, False)):
        home = tmp_path / str(expected)
        home.mkdir()
        subprocess.run(
            [sys.executable, "-c", "import ray; ray.init(num_cpus=1, include_dashboard=False)"],
            env={**inherited, **mode, "HOME": str(home)},
            check=True,
            capture_output=True,
        )
        assert (home / ".ray" / "auth_token").exists() == expected


def test_10_the_dashboard_page_of_train_runs_is_empty_by_default() -> None:
    """Workaround: env_vars.py enables it; tests/integration/test_job.py reads the page."""
    source = Path(data_parallel_trainer.__file__).read_text()
    assert "env_bool(RAY_TRAIN_ENABLE_STATE_TRACKING, False)" in source
    assert WORKER_ENV["RAY_TRAIN_ENABLE_STATE_TRACKING"] == "1"


@pytest.mark.slow
def test_11_a_stopped_trial_leaks_the_placement_group_of_its_workers(tmp_path: Path) -> None:
    """Workaround: trials stop themselves; restarts remove leaked groups (sweep/schedulers.py)."""

    def created_groups() -> set[str]:
        table = ray.util.placement_group_table()
        return {key for key, group in table.items() if group["state"] == "CREATED"}

    before, folder = created_groups(), str(tmp_path)

    def trial(params: dict[str, Any]) -> None:
        def loop() -> None:
            (Path(folder) / "started").touch()
            time.sleep(LONG_S)

        driver = threading.Thread(target=train, args=(loop, Path(folder), "inner"), daemon=True)
        driver.start()
        assert wait_for((Path(folder) / "started").exists)
        tune.report({"step": 1})
        time.sleep(LONG_S)

    tune.Tuner(
        tune.with_resources(trial, tune.PlacementGroupFactory([{"CPU": 0.1}])),
        run_config=tune.RunConfig(name="outer", storage_path=folder, verbose=0, stop={"step": 1}),
    ).fit()
    assert not wait_for(lambda: created_groups() == before, SHORT_S)
    for group in created_groups() - before:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group)))


def test_12_without_a_checkpoint_a_result_has_no_metrics(tmp_path: Path) -> None:
    """Workaround: the loop returns what the driver needs; the rest is in the run's folder."""

    def loop() -> int:
        ray.train.report({"a": 1})
        return 7

    result = train(loop, tmp_path)
    assert result.metrics is None and result.return_value == 7


@pytest.mark.slow
def test_13_two_report_queues_of_tune_deadlock(tmp_path: Path) -> None:
    """Workaround: reports of a run reach Tune only by `tune.report` (sweep/trial.py)."""
    folder = str(tmp_path)

    def trial(params: dict[str, Any]) -> None:
        (Path(folder) / "pid").write_text(str(os.getpid()))
        session = get_session()
        queue = session._get_or_create_inter_actor_queue()  # as TuneReportCallback does

        def report_too() -> None:
            while not session.result_queue.full():
                time.sleep(0.001)
            queue.put({"from": "the run"})

        threading.Thread(target=report_too, daemon=True).start()
        tune.report({"from": "the trial"})
        (Path(folder) / "reported").touch()

    tuner = tune.Tuner(
        tune.with_resources(trial, {"CPU": 0.1}),
        run_config=tune.RunConfig(name="deadlock", storage_path=folder, verbose=0),
    )
    running = threading.Thread(target=tuner.fit)
    running.start()
    assert wait_for((tmp_path / "reported").exists)
    assert not wait_for(lambda: not running.is_alive(), SHORT_S)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    running.join()


def test_14_a_controller_without_an_answer_is_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the state API does not know the controller, the cleaner removes its placement group.

    A busy head node answers so for a moment. Workaround: `FaultTolerantTorchTrainer` removes that
    cleaner.
    """
    monkeypatch.setattr(util, "get_actor", lambda *_, **__: None)
    assert not util.is_actor_alive("a controller", timeout=1)

    def has_cleaner(trainer: data_parallel_trainer.DataParallelTrainer) -> bool:
        callbacks = trainer._create_default_callbacks()
        return any(isinstance(callback, PlacementGroupCleanerCallback) for callback in callbacks)

    settings = RunConfig(storage_path=str(tmp_path))
    plain_trainer = data_parallel_trainer.DataParallelTrainer(lambda: None, run_config=settings)
    assert has_cleaner(plain_trainer)
    assert not has_cleaner(
        FaultTolerantTorchTrainer(RunDir(tmp_path), lambda: None, run_config=settings)
    )
