"""Tune's schedulers, which stop trials whose validated checkpoints fall behind in success."""

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

from imf_ray.errors import StorageError, UserError
from imf_ray.rollout.records import SUCCESS_RATE
from imf_ray.sweep.trial_record import TrialDir
from imf_ray.training.checkpoint import VALIDATED_STEP

SCHEDULERS: Mapping[str, type[TrialScheduler]] = {
    "asha": ASHAScheduler,
    "median_stopping": MedianStoppingRule,
}
RESERVED_ARGS = ("time_attr", "metric", "mode", "max_t")
"""Scheduler arguments that the sweep sets itself."""
RANDOM_ARGS = ("brackets",)
"""Scheduler arguments that assign trials at random and would change on resume."""
log = logging.getLogger(__name__)
SchedulerSpec = Mapping[str, Mapping[str, Any]]
"""`{scheduler name: its options}`; empty for no scheduler."""


def check_scheduler(spec: Any, max_steps: int | None = None) -> None:
    """Check that a search space's `scheduler:` names a scheduler and options that it has.

    Args:
        max_steps: updates of the longest trial, if known; the scheduler is then built as well.

    Raises:
        UserError: it does not.
    """
    if not isinstance(spec, dict) or len(spec) > 1 or set(spec) - set(SCHEDULERS):
        names = ", ".join(SCHEDULERS)
        raise UserError(f"`scheduler:` holds one of {names} with its options, not {spec!r}.")
    for name, options in spec.items():
        allowed = set(inspect.signature(SCHEDULERS[name]).parameters)
        allowed -= {*RESERVED_ARGS, *RANDOM_ARGS}
        if not isinstance(options, dict) or set(options) - allowed:
            raise UserError(f"The options of {name} are {', '.join(sorted(allowed))}.")
        if max_steps is not None:
            _inner_scheduler(name, options, max_steps)


def make_scheduler(
    spec: SchedulerSpec, max_steps: int, trial_dirs: Mapping[str, TrialDir]
) -> TrialScheduler | None:
    """Build the scheduler of a sweep, or None if it has none.

    A validation ends some time after its checkpoint was written. `VALIDATED_STEP` holds the step of
    that checkpoint, so that trials are compared at equal training steps.

    Args:
        max_steps: updates of the longest trial.
        trial_dirs: run folders of the trials, by name.

    Raises:
        UserError: the scheduler refuses its options.
    """
    for name, options in spec.items():
        inner = _inner_scheduler(name, options, max_steps)
        return CooperativeScheduler(inner, max_steps, trial_dirs)
    return None


def _inner_scheduler(name: str, options: Mapping[str, Any], max_steps: int) -> TrialScheduler:
    end = {"max_t": max_steps} if name == "asha" else {}
    try:
        return SCHEDULERS[name](
            time_attr=VALIDATED_STEP, metric=SUCCESS_RATE, mode="max", **end, **options
        )
    except (AssertionError, ValueError, TypeError) as error:
        raise UserError(
            f"The scheduler {name} with {dict(options)} and {max_steps} training steps is not "
            f"possible: {error}"
        ) from error


class CooperativeScheduler(FIFOScheduler):
    """Wraps a Tune scheduler; trials that it stops are asked to end themselves.

    Tune kills the process of a trial that it stops. Ray Train's controller, a child of that
    process, sees its workers die first. It may then start new workers in a new placement group,
    which outlives both. A trial that ends by itself leaves a checkpoint and no placement group.

    Validations of earlier sessions of the sweep are replayed to the inner scheduler first, in the
    order in which they were logged. It then decides as it did before.
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
        """Let the inner scheduler decide, and turn a stop into a request in the run's folder."""
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
                # At its last step, a trial that has simply finished gets a STOP, too.
                if decision == TrialScheduler.STOP and step < self._max_steps:
                    self._stopped.add(name)
        # Requested again at every result: workers that read the last request may have died.
        trial_dir = self._trial_dirs[name]
        try:
            if name in self._stopped and trial_dir.read_record(retry=False) is None:
                trial_dir.request_stop()
        except StorageError as error:  # may be transient, and must not end Tune's loop
            log.warning("The request to stop %s is repeated at its next result: %s", name, error)


class _NullTuneController:
    """Stub Tune controller for the wrapped scheduler; reports no live trials."""

    def get_live_trials(self) -> list[Any]:
        """Return no trial: then the inner scheduler never pauses one to wait for others."""
        return []


@dataclass(frozen=True)
class _TrialStub:
    """Trial as the inner scheduler sees it: equal in every session of the sweep."""

    trial_id: str


def _validation_history(trial_dirs: Mapping[str, TrialDir]) -> list[tuple[str, dict[str, Any]]]:
    """Trial name and metrics of every logged validation, oldest first."""
    validations = [
        (line["time"], name, line)
        for name, trial_dir in trial_dirs.items()
        for line in trial_dir.read_metrics()
        if VALIDATED_STEP in line
    ]
    return [(name, line) for _, name, line in sorted(validations, key=lambda entry: entry[0])]
