"""Ending trials that fall behind: Tune's schedulers, by the success of validated checkpoints."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from imf_ray.errors import UserError
from imf_ray.rollout.records import SUCCESS_RATE
from imf_ray.sweep.trial import read_trial
from imf_ray.training.checkpoint import VALIDATED_STEP
from imf_ray.training.interruption import request_stop

SCHEDULERS: Mapping[str, type[TrialScheduler]] = {
    "asha": ASHAScheduler,
    "median_stopping": MedianStoppingRule,
}
TOLD = ("time_attr", "metric", "mode", "max_t")
"""What a sweep itself tells its scheduler."""
Spec = Mapping[str, Mapping[str, Any]]
"""The name of a scheduler and its options; or nothing."""


def check_scheduler(spec: Any) -> None:
    """See that a search space's `scheduler:` names one, and options that it has.

    Raises:
        UserError: it does not.
    """
    if not isinstance(spec, dict) or len(spec) > 1 or set(spec) - set(SCHEDULERS):
        names = ", ".join(SCHEDULERS)
        raise UserError(f"`scheduler:` holds one of {names} with its options, not {spec!r}.")
    for name, options in spec.items():
        known = set(inspect.signature(SCHEDULERS[name]).parameters) - set(TOLD)
        if not isinstance(options, dict) or set(options) - known:
            raise UserError(f"The options of {name} are {', '.join(sorted(known))}.")


def make_scheduler(
    spec: Spec, max_steps: int, run_dirs: Mapping[str, Path]
) -> TrialScheduler | None:
    """The scheduler of a sweep, if there is one.

    Success is known some time after the checkpoint that it is of; `VALIDATED_STEP` says which one
    that was, so that trials are compared where they had come equally far.

    Args:
        max_steps: of the longest trial.
        run_dirs: of the trials, by name.

    Raises:
        UserError: its options are not possible.
    """
    for name, options in spec.items():
        end = {"max_t": max_steps} if name == "asha" else {}
        try:
            inner = SCHEDULERS[name](
                time_attr=VALIDATED_STEP, metric=SUCCESS_RATE, mode="max", **end, **options
            )
        except (AssertionError, ValueError, TypeError) as error:
            raise UserError(
                f"The scheduler {name} with {dict(options)} and {max_steps} training steps is not "
                f"possible: {error}"
            ) from error
        return CooperativeScheduler(inner, run_dirs)
    return None


class CooperativeScheduler(FIFOScheduler):
    """Asks the trials that another scheduler wants stopped to end themselves.

    Tune kills the process of a trial that it stops. Ray Train's controller, a child of it, sees its
    workers die first, and may start others in a new placement group, which then outlives them all.
    A trial that ends by itself leaves a checkpoint and nothing else.
    """

    def __init__(self, inner: TrialScheduler, run_dirs: Mapping[str, Path]) -> None:
        super().__init__()
        self._inner, self._run_dirs = inner, run_dirs
        self._stopped: set[str] = set()

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Tell the inner scheduler."""
        self._inner.on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Tell the inner scheduler."""
        self._inner.on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Pass on what the inner scheduler decides, once, as a request in the run's folder."""
        if trial.trial_id not in self._stopped:
            decision = self._inner.on_trial_result(tune_controller, trial, result)
            run_dir = self._run_dirs[str(trial)]
            if decision == TrialScheduler.STOP and read_trial(run_dir) is None:
                self._stopped.add(trial.trial_id)
                request_stop(run_dir)
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Tell the inner scheduler."""
        if trial.trial_id not in self._stopped:
            self._inner.on_trial_complete(tune_controller, trial, result)

    def debug_string(self) -> str:
        """What the inner scheduler says."""
        return self._inner.debug_string()
