"""The Ray task that computes the action error: repeated waits, and a timeout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import GetTimeoutError

from imf_ray.config import load_config
from imf_ray.training import validation


@ray.remote
def _quick_task(*_: Any) -> float:
    return 0.5


@ray.remote
def _waiting_task(*_: Any) -> float:
    return 0.5


@ray.remote(num_cpus=0, max_retries=0)
def _wait_many_times(rounds: int) -> float:
    """Wait for tasks in a separate worker, because the fault kills the process that waits."""
    validation._action_error_task = _quick_task  # type: ignore[assignment]
    config, total = load_config(), 0.0
    for _ in range(rounds):
        total += validation._run_action_error_task(Path("x"), [], config, {"num_cpus": 0.01})
    return total / rounds


@pytest.mark.parametrize("rounds", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_waiting_for_many_action_errors_kills_no_process(ray_cluster: None, rounds: int) -> None:
    """A forced `ray.cancel` of each finished task once killed the process after about 400 rounds.

    Ray 2.60 aborted it with "Check failed: it != submissible_tasks_.end()".
    """
    assert ray.get(_wait_many_times.remote(rounds)) == 0.5


def test_a_task_without_resources_is_cancelled(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = []
    monkeypatch.setattr(validation, "_action_error_task", _waiting_task)
    monkeypatch.setattr(validation, "ACTION_ERROR_TIMEOUT_S", 0.5)
    monkeypatch.setattr(validation.ray, "cancel", lambda task, force: cancelled.append(task))
    with pytest.raises(GetTimeoutError):
        validation._run_action_error_task(Path("x"), [], load_config(), {"num_cpus": 1000})
    (task,) = cancelled
    monkeypatch.undo()
    ray.cancel(task, force=True)
