"""Ending trials that fall behind: Tune's schedulers, by the success of validated checkpoints."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from imf_ray.errors import StorageError, UserError
from imf_ray.rollout.records import SUCCESS_RATE
from imf_ray.sweep.trial import read_trial
from imf_ray.training.checkpoint import VALIDATED_STEP
from imf_ray.training.stop_signal import request_stop
from imf_ray.training.tracking import METRICS_FILE, read_metrics

SCHEDULERS: Mapping[str, type[TrialScheduler]] = {
    "asha": ASHAScheduler,
    "median_stopping": MedianStoppingRule,
}
RESERVED_ARGS = ("time_attr", "metric", "mode", "max_t")
"""What a sweep itself tells its scheduler."""
RANDOM_ARGS = ("brackets",)
"""What would put trials into other groups, drawn at random, when a sweep goes on."""
log = logging.getLogger(__name__)
Spec = Mapping[str, Mapping[str, Any]]
"""The name of a scheduler and its options; or nothing."""


def check_scheduler(spec: Any, max_steps: int | None = None) -> None:
    """See that a search space's `scheduler:` names one, and options that it has.

    Args:
        max_steps: of the longest trial, where that is known.

    Raises:
        UserError: it does not.
    """
    if not isinstance(spec, dict) or len(spec) > 1 or set(spec) - set(SCHEDULERS):
        names = ", ".join(SCHEDULERS)
        raise UserError(f"`scheduler:` holds one of {names} with its options, not {spec!r}.")
    for name, options in spec.items():
        known = set(inspect.signature(SCHEDULERS[name]).parameters) - {*RESERVED_ARGS, *RANDOM_ARGS}
        if not isinstance(options, dict) or set(options) - known:
            raise UserError(f"The options of {name} are {', '.join(sorted(known))}.")
        if max_steps is not None:
            _inner_scheduler(name, options, max_steps)


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
        inner = _inner_scheduler(name, options, max_steps)
        return CooperativeScheduler(inner, max_steps, run_dirs)
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
    """Asks the trials that another scheduler wants stopped to end themselves.

    Tune kills the process of a trial that it stops. Ray Train's controller, a child of it, sees its
    workers die first, and may start others in a new placement group, which then outlives them all.
    A trial that ends by itself leaves a checkpoint and nothing else.

    What earlier sessions of the sweep have found out is told to the inner scheduler first, in the
    order in which it was found out then, so that it decides as it did.
    """

    def __init__(self, inner: TrialScheduler, max_steps: int, run_dirs: Mapping[str, Path]) -> None:
        super().__init__()
        self._inner, self._max_steps, self._run_dirs = inner, max_steps, run_dirs
        self._heard: set[tuple[str, int]] = set()
        self._trials = {name: _TrialStub(name) for name in run_dirs}
        self._stopped: set[str] = set()
        for trial in self._trials.values():
            inner.on_trial_add(_NullTuneController(), trial)
        for name, metrics in _history(run_dirs):
            self._judge(name, metrics)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Pass on what the inner scheduler decides, as a request in the run's folder."""
        self._judge(str(trial), result)
        return TrialScheduler.CONTINUE

    def debug_string(self) -> str:
        """What the inner scheduler says."""
        return self._inner.debug_string()

    def _judge(self, name: str, result: Mapping[str, Any]) -> None:
        if name not in self._stopped and {VALIDATED_STEP, SUCCESS_RATE} <= result.keys():
            step = result[VALIDATED_STEP]
            if (name, step) not in self._heard:
                self._heard.add((name, step))
                decision = self._inner.on_trial_result(
                    _NullTuneController(), self._trials[name], dict(result)
                )
                # At the last step it says so to a trial that has come to its end.
                if decision == TrialScheduler.STOP and step < self._max_steps:
                    self._stopped.add(name)
        # Asked again at every result: the workers that heard it may have died.
        try:
            if name in self._stopped and read_trial(self._run_dirs[name]) is None:
                request_stop(self._run_dirs[name])
        except StorageError as error:  # for a moment, perhaps; Tune's loop must not end by it
            log.warning("%s is asked to stop later: %s", name, error)


class _NullTuneController:
    """The Tune controller of the inner schedulers: nobody waits for whom a trial should pause."""

    def get_live_trials(self) -> list[Any]:
        """None."""
        return []


@dataclass(frozen=True)
class _TrialStub:
    """What the inner schedulers know of a trial: the same object in each session."""

    trial_id: str


def _history(run_dirs: Mapping[str, Path]) -> list[tuple[str, dict[str, Any]]]:
    """Trial and metrics of every validation so far, in the order in which they were logged."""
    found = [
        (line["time"], name, line)
        for name, run_dir in run_dirs.items()
        for line in read_metrics(run_dir / METRICS_FILE)
        if VALIDATED_STEP in line
    ]
    return [(name, line) for _, name, line in sorted(found, key=lambda entry: entry[0])]
