"""How often a run is tried again, and what of an error is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.exceptions import RayTaskError
from ray.train import FailureConfig, WorkerGroupError
from ray.train.v2._internal.execution.failure_handling import FailureDecision

from imf_ray.errors import DivergenceError, StorageError, UserError
from imf_ray.training.checkpoint import MANIFEST, checkpoint_path
from imf_ray.training.failures import ProgressAwareFailurePolicy, error_summary, find_user_error


def failure(error: Exception) -> WorkerGroupError:
    return WorkerGroupError("a worker failed", {0: error})


def finish_checkpoint(run_dir: Path, step: int) -> None:
    path = checkpoint_path(run_dir, step)
    path.mkdir()
    (path / MANIFEST).touch()


def test_failures_count_from_the_last_checkpoint_on(tmp_path: Path) -> None:
    finish_checkpoint(tmp_path, 10)
    policy = ProgressAwareFailurePolicy(FailureConfig(max_failures=2), tmp_path)
    died = failure(RuntimeError("died"))
    retry, end = FailureDecision.RETRY, FailureDecision.RAISE
    assert [policy.make_decision(died) for _ in range(2)] == [retry, retry]
    finish_checkpoint(tmp_path, 20)
    assert [policy.make_decision(died) for _ in range(3)] == [retry, retry, end]


def test_what_would_go_wrong_again_ends_the_run_at_once(tmp_path: Path) -> None:
    policy = ProgressAwareFailurePolicy(FailureConfig(max_failures=2), tmp_path)
    diverged = failure(DivergenceError("not finite"))
    assert policy.make_decision(diverged) == FailureDecision.RAISE
    assert policy.make_decision(failure(StorageError("full"))) == FailureDecision.RETRY


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_users_error_is_found(wrapped: bool) -> None:
    cause = UserError("episode_3.hdf5 was changed")
    error: Exception = RayTaskError("read", "a traceback", cause) if wrapped else cause
    assert find_user_error(failure(error)) is cause
    assert find_user_error(failure(RuntimeError("died"))) is None


def test_the_last_line_of_a_traceback_says_what_it_was() -> None:
    assert error_summary(RuntimeError("Traceback\n  File x\nOSError: full\n")) == "OSError: full"
    assert error_summary(KeyError()) == "KeyError()"
