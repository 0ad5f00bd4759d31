"""Which failures a run gets over, and how often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.exceptions import RayTaskError
from ray.train import FailureConfig
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy

from imf_ray.errors import DivergenceError, UserError
from imf_ray.storage import to_local
from imf_ray.training.checkpoint import newest_step


class CheckpointProgress:
    """Whether a run has come further since it was last asked for."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir, self._step = run_dir, newest_step(run_dir) or 0

    def was_made(self) -> bool:
        """Whether there is a later checkpoint than at the last call."""
        # None while the folder is away: what was reached once stays reached.
        before, self._step = self._step, max(self._step, newest_step(self._run_dir) or 0)
        return self._step > before


class ProgressAwareFailurePolicy(DefaultFailurePolicy):
    """Ray Train's, but for two things: failures count from the last checkpoint on, so that a long
    run may have many; and it ends at once where the same steps would fail again.
    """

    def __init__(self, failure_config: FailureConfig, run_dir: Path) -> None:
        super().__init__(failure_config)
        self._progress = CheckpointProgress(to_local(run_dir))

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        """Try again, or raise."""
        if isinstance(find_user_error(training_failed_error), DivergenceError):
            return FailureDecision.RAISE
        if self._progress.was_made():
            self._worker_group_failures = 0
        return super().make_decision(training_failed_error)


def find_user_error(error: BaseException) -> UserError | None:
    """The `UserError` among the failures behind a failed training."""
    failures = [*getattr(error, "worker_failures", {}).values()]
    for failure in [*failures, getattr(error, "controller_failure", None)]:
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, RayTaskError):  # reads as a traceback, whatever it was
                cause = cause.cause
            if isinstance(cause, UserError):
                return cause
            cause = cause.__cause__ or getattr(cause, "base_exc", None)
    return None


def error_summary(error: BaseException) -> str:
    """What an error says in the end; one that was raised elsewhere reads as a traceback."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else repr(error)
