"""Which failures are retried, how often, and what is shown of an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.exceptions import RayTaskError
from ray.train import FailureConfig, WorkerGroupError

from imf_ray.errors import DivergenceError, StorageError, UserError
from imf_ray.ray_internals import FailureDecision
from imf_ray.training.checkpoint import MANIFEST_FILE
from imf_ray.training.fault_tolerance import (
    ProgressAwareFailurePolicy,
    error_summary,
    find_user_error,
)
from imf_ray.training.run_dir import RunDir


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


def test_a_diverged_run_is_not_retried(tmp_path: Path) -> None:
    policy = ProgressAwareFailurePolicy(FailureConfig(max_failures=2), RunDir(tmp_path))
    diverged = worker_failure(DivergenceError("not finite"))
    assert policy.make_decision(diverged) == FailureDecision.RAISE
    assert policy.make_decision(worker_failure(StorageError("full"))) == FailureDecision.RETRY


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_user_error_is_found_among_the_causes(wrapped: bool) -> None:
    cause = UserError("episode_3.hdf5 was changed")
    error: Exception = RayTaskError("read", "a traceback", cause) if wrapped else cause
    assert find_user_error(worker_failure(error)) is cause
    assert find_user_error(worker_failure(RuntimeError("died"))) is None


def test_the_summary_of_an_error_is_its_last_line() -> None:
    assert error_summary(RuntimeError("Traceback\n  File x\nOSError: full\n")) == "OSError: full"
    assert error_summary(KeyError()) == "KeyError()"
