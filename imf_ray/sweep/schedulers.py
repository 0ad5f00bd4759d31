"""Tune's schedulers, which stop trials whose success rate falls behind."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from imf_ray.checkpoint_dir import VALIDATED_STEP
from imf_ray.errors import StorageError, UserError
from imf_ray.rollout.records import SUCCESS_RATE
from imf_ray.sweep.trial_record import TrialDir

SCHEDULERS: Mapping[str, type[TrialScheduler]] = {
    "asha": ASHAScheduler,
    "median_stopping": MedianStoppingRule,
}
RESERVED_ARGS = ("time_attr", "metric", "mode", "max_t")
"""Scheduler arguments that the sweep sets."""
RANDOM_ARGS = ("brackets",)
"""Scheduler arguments that assign trials at random and would change on resume."""
log = logging.getLogger(__name__)
SchedulerSpec = Mapping[str, Mapping[str, Any]]
"""Content of `scheduler:`: `{name: options}`, or empty for no scheduler."""


def check_scheduler(spec: Any, max_steps: int | None = None) -> None:
    """Check the scheduler and the options in a search space's `scheduler:`.

    Args:
        max_steps: number of updates of the longest trial. If given, the values of the options are
            checked as well.

    Raises:
        UserError: the scheduler or one of its options is unknown or invalid.
    """
    if not isinstance(spec, dict) or len(spec) > 1 or set(spec) - set(SCHEDULERS):
        names = ", ".join(SCHEDULERS)
        raise UserError(f"`scheduler:` must be one of {names} with its options, not {spec!r}.")
    for name, options in spec.items():
        allowed = set(inspect.signature(SCHEDULERS[name]).parameters)
        allowed -= {*RESERVED_ARGS, *RANDOM_ARGS}
        if not isinstance(options, dict) or set(options) - allowed:
            raise UserError(f"The scheduler {name} has the options {', '.join(sorted(allowed))}.")
        if max_steps is not None:
            _make_inner_scheduler(name, options, max_steps)


def make_scheduler(
    spec: SchedulerSpec, max_steps: int, trial_dirs: Mapping[str, TrialDir]
) -> TrialScheduler | None:
    """Make the scheduler of a sweep, or return None if the sweep has none.

    A validation ends some time after its checkpoint was saved. `VALIDATED_STEP` is the step of that
    checkpoint, so trials are compared at equal training steps.

    Args:
        max_steps: number of updates of the longest trial.
        trial_dirs: run folders of the trials, by name.

    Raises:
        UserError: the options of the scheduler are invalid.
    """
    for name, options in spec.items():
        inner = _make_inner_scheduler(name, options, max_steps)
        return CooperativeScheduler(inner, max_steps, trial_dirs)
    return None


def _make_inner_scheduler(name: str, options: Mapping[str, Any], max_steps: int) -> TrialScheduler:
    horizon = {"max_t": max_steps} if name == "asha" else {}
    try:
        return SCHEDULERS[name](
            time_attr=VALIDATED_STEP, metric=SUCCESS_RATE, mode="max", **horizon, **options
        )
    except (AssertionError, ValueError, TypeError) as error:
        raise UserError(
            f"The scheduler {name} with {dict(options)} and {max_steps} training steps is not "
            f"possible: {error}"
        ) from error


class CooperativeScheduler(FIFOScheduler):
    """Wraps a Tune scheduler, and asks trials to stop instead of killing them.

    Tune kills the process of a trial that a scheduler stops. Ray Train's controller, a child of
    that process, sees its workers die first. It may then start new workers in a new placement
    group, which outlives the trial and the controller. A trial that stops on request leaves a
    checkpoint and no placement group.

    When a sweep resumes, the validations of its earlier sessions are first replayed to the inner
    scheduler, in the order in which they were logged. Its decisions are then the same as before.
    """

    def __init__(
        self, inner: TrialScheduler, max_steps: int, trial_dirs: Mapping[str, TrialDir]
    ) -> None:
        super().__init__()
        self._inner, self._max_steps, self._trial_dirs = inner, max_steps, trial_dirs
        self._seen_results: set[tuple[str, int]] = set()
        self._trials = {name: _TrialStub(name) for name in trial_dirs}
        self._stopped: set[str] = set()
        for trial in self._trials.values():
            inner.on_trial_add(_NullTuneController(), trial)
        for name, metrics in _validation_history(trial_dirs):
            self._process_result(name, metrics)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Let the inner scheduler decide. If it stops the trial, request that in the run folder."""
        self._process_result(str(trial), result)
        return TrialScheduler.CONTINUE

    def debug_string(self) -> str:
        """Return the inner scheduler's description of its state."""
        return self._inner.debug_string()

    def _process_result(self, name: str, result: Mapping[str, Any]) -> None:
        if name not in self._stopped and {VALIDATED_STEP, SUCCESS_RATE} <= result.keys():
            step = result[VALIDATED_STEP]
            if (name, step) not in self._seen_results:
                self._seen_results.add((name, step))
                decision = self._inner.on_trial_result(
                    _NullTuneController(), self._trials[name], dict(result)
                )
                # The decision is also STOP at the last step, when the trial has finished.
                if decision == TrialScheduler.STOP and step < self._max_steps:
                    self._stopped.add(name)
        # Repeat the request at every result: workers that read the last one may have died.
        trial_dir = self._trial_dirs[name]
        try:
            if name in self._stopped and trial_dir.read_record(retry=False) is None:
                trial_dir.request_stop()
        except StorageError as error:  # may be transient, and must not end Tune's loop
            log.warning("%s cannot be stopped; retrying at its next result: %s", name, error)


class _NullTuneController:
    """Stub Tune controller for the wrapped scheduler, without live trials."""

    def get_live_trials(self) -> list[Any]:
        """Return no trials, so that the inner scheduler never pauses a trial to wait for others."""
        return []


@dataclass(frozen=True)
class _TrialStub:
    """Stub trial for the wrapped scheduler. It is equal in every session of the sweep."""

    trial_id: str


def _validation_history(trial_dirs: Mapping[str, TrialDir]) -> list[tuple[str, dict[str, Any]]]:
    """Return the trial name and the metrics of every logged validation, oldest first."""
    validations = [
        (line["time"], name, line)
        for name, trial_dir in trial_dirs.items()
        for line in trial_dir.read_metrics()
        if VALIDATED_STEP in line
    ]
    return [(name, line) for _, name, line in sorted(validations, key=lambda entry: entry[0])]
