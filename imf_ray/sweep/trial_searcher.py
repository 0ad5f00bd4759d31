"""Gives Tune the trials of a sweep whose options are sampled by the success of earlier trials."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import ray
from ray.tune.search import Searcher

from imf_ray.errors import UserError
from imf_ray.rollout.records import SUCCESS_RATE
from imf_ray.sweep.prepare import Sweep
from imf_ray.sweep.searchers import SearchResult, sample_by_results
from imf_ray.sweep.trial import TrialSpec
from imf_ray.sweep.trial_record import FAILED, TrialRecord

log = logging.getLogger(__name__)


class TrialSearcher(Searcher):
    """Gives Tune the trials of a sweep in order, and samples those that are not known yet.

    The options of a trial are written to `space.json` before it starts. A trial whose options do
    not fit together gets a failed record.

    Args:
        make_spec: returns the input of a trial by its name.
    """

    def __init__(self, sweep: Sweep, make_spec: Callable[[str], TrialSpec]) -> None:
        super().__init__(metric=SUCCESS_RATE, mode="max")
        self._sweep, self._make_spec = sweep, make_spec
        self._remaining = iter(enumerate(sweep.params))

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the configuration of the next trial for Tune, or that there is none.

        There is none after a request to stop: a sample should know the trials that it interrupts.
        """
        if self._sweep.sweep_dir.stop_requested():
            return Searcher.FINISHED
        for number, name in self._remaining:
            if self._sweep.params[name] or self._sample(number, name):
                return {"trial": name, "spec": ray.put(self._make_spec(name))}
        return Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: the results are in the run folders."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a sweep resumes from its folder."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, see `save`."""

    def _sample(self, number: int, name: str) -> bool:
        """Sample the options of a trial. Returns False if they do not fit together."""
        sweep, space = self._sweep, self._sweep.space
        read = map(SearchResult.read, sweep.trial_dirs.values())
        results = [result for result in read if result is not None]
        params = sample_by_results(space.search, space.sample, (space.seed, number), results)
        try:
            sweep.add_trial(name, params)
        except UserError as error:
            log.warning("%s", error)
            trial_dir = sweep.sweep_dir.trial(name)
            record = TrialRecord(name, params, FAILED, run_dir=str(trial_dir), error=str(error))
            trial_dir.write_record(record)
            return False
        sweep.save()
        return True
