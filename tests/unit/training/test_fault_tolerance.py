"""Which failures are retried, how often, and what is shown of an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train import ControllerError, FailureConfig, WorkerGroupError

from imf_ray.allocation import RolloutResources, RunResources
from imf_ray.checkpoint_dir import MANIFEST_FILE
from imf_ray.errors import DivergenceError, StorageError, UserError
from imf_ray.ray_internals import FailureDecision, WorkerGroupStartupTimeoutError
from imf_ray.training.fault_tolerance import (
    ProgressAwareFailurePolicy,
    error_summary,
    find_user_error,
    fit_with_controller_restarts,
)
from imf_ray.training.run_dir import RAY_SNAPSHOT_FILE, RunDir

ELASTIC = RunResources(2, 4, 0.5, 0.0, RolloutResources(1, 0.5))


def worker_failure(error: Exception) -> WorkerGroupError:
    return WorkerGroupError("a worker failed", {0: error})


def finish_checkpoint(run_dir: RunDir, step: int) -> None:
    run_dir.checkpoint(step).mkdir()
    (run_dir.checkpoint(step) / MANIFEST_FILE).touch()


def test_failures_are_counted_from_the_last_checkpoint_on(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    finish_checkpoint(run_dir, 10)
    policy = ProgressAwareFailurePolicy(FailureConfig(max_failures=2), run_dir)
    died = worker_failure(RuntimeError("died"))
    retry, end = FailureDecision.RETRY, FailureDecision.RAISE
    assert [policy.make_decision(died) for _ in range(2)] == [retry, retry]
    finish_checkpoint(run_dir, 20)
    assert [policy.make_decision(died) for _ in range(3)] == [retry, retry, end]


def test_only_failures_that_may_pass_are_retried(tmp_path: Path) -> None:
    policy = ProgressAwareFailurePolicy(FailureConfig(max_failures=9), RunDir(tmp_path))
    for error in (DivergenceError("not finite"), UserError("there is no C++ compiler")):
        assert policy.make_decision(worker_failure(error)) == FailureDecision.RAISE
    for error in (StorageError("full"), OSError("no route"), RuntimeError("died")):
        assert policy.make_decision(worker_failure(error)) == FailureDecision.RETRY


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_user_error_is_found_among_the_causes(wrapped: bool) -> None:
    cause = UserError("episode_3.hdf5 was changed")
    error: Exception = RayTaskError("read", "a traceback", cause) if wrapped else cause
    assert find_user_error(worker_failure(error)) is cause
    assert find_user_error(worker_failure(RuntimeError("died"))) is None


def test_the_summary_of_an_error_is_its_last_line() -> None:
    assert error_summary(RuntimeError("Traceback\n  File x\nOSError: full\n")) == "OSError: full"
    assert error_summary(KeyError()) == "KeyError()"


@pytest.mark.parametrize("error", [ControllerError(OSError("full")), ActorDiedError()])
def test_a_failed_controller_is_restarted(tmp_path: Path, error: Exception) -> None:
    snapshot_existed = []

    class Failing:
        def __init__(self, workers: int) -> None:
            assert workers == 4

        def fit(self) -> None:
            snapshot_existed.append((tmp_path / RAY_SNAPSHOT_FILE).exists())
            (tmp_path / RAY_SNAPSHOT_FILE).touch()
            raise error

    with pytest.raises(type(error)):
        fit_with_controller_restarts(Failing, RunDir(tmp_path), ELASTIC, max_failures=2)
    assert snapshot_existed == [False] * 3


def test_an_elastic_run_asks_for_fewer_workers_if_more_do_not_fit(tmp_path: Path) -> None:
    requested: list[int] = []

    class Waiting:
        def __init__(self, workers: int) -> None:
            requested.append(workers)

        def fit(self) -> int:
            if len(requested) < 5:
                raise ControllerError(WorkerGroupStartupTimeoutError(requested[-1]))
            return len(requested)

    assert fit_with_controller_restarts(Waiting, RunDir(tmp_path), ELASTIC, max_failures=0) == 5
    assert requested == [4, 3, 2, 2, 2]
