"""Searchers, which sample the options of a trial by the success of earlier trials.

`search:` in a search space names one, and has its options: `{optuna: {n_startup_trials: 4}}`.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imf_ray.errors import UserError
from imf_ray.rollout.records import SUCCESS_RATE
from imf_ray.schema.values import convert
from imf_ray.sweep.distributions import plain_sample, tune_domain
from imf_ray.sweep.trial_record import FAILED, STOPPED, TrialDir

OPTUNA = "optuna"
STARTUP_OPTION = "n_startup_trials"
OPTION_TYPES: Mapping[str, type] = {
    STARTUP_OPTION: int,
    "n_ei_candidates": int,
    "multivariate": bool,
}
"""Options of Optuna's `TPESampler` that a search space may set."""
DEFAULT_STARTUP_TRIALS = 10
"""Number of random trials before the first choice, as in Optuna."""
UNSUPPORTED_DISTRIBUTION = "quniform"
"""Optuna counts its steps from the lower bound, and Tune from 0."""
LENGTH_OPTION = "train.max_steps"
"""The length of all trials is known before the first one starts."""
SearchSpec = Mapping[str, Mapping[str, Any]]
"""Content of `search:`: `{name: options}`."""
SampleSpec = Mapping[str, Mapping[str, list[Any]]]
"""Content of `sample:`: options and their distributions."""


def check_searcher(search: SearchSpec, sample: SampleSpec, has_grid: bool) -> None:
    """Check the searcher and the options in a search space's `search:`.

    Raises:
        UserError: the searcher or one of its options is unknown, invalid or not installed, or it
            cannot search this space.
    """
    if set(search) != {OPTUNA} or not isinstance(search[OPTUNA], Mapping):
        raise UserError(f"`search:` must be {{{OPTUNA}: {{options}}}}, not {dict(search)!r}.")
    options = search[OPTUNA]
    if unknown := sorted(set(options) - set(OPTION_TYPES)):
        raise UserError(
            f"search: {OPTUNA} has no option {unknown[0]}, but {', '.join(OPTION_TYPES)}."
        )
    for key, value in options.items():
        number = convert(f"search: {key}", OPTION_TYPES[key], value)
        if OPTION_TYPES[key] is int and number < 1:
            raise UserError(f"search: {key}={number} must be at least 1.")
    if has_grid:
        raise UserError(
            "A searcher samples all options. Replace `grid:` by `sample:` with choice, such as "
            "{choice: [2, 4]}."
        )
    for key, distribution in sample.items():
        if key == LENGTH_OPTION:
            raise UserError(
                f"{key} cannot be searched, because all trials need the same length. Move it to "
                "`fixed:`."
            )
        if UNSUPPORTED_DISTRIBUTION in distribution:
            raise UserError(
                f"sample: {key} cannot be searched with {UNSUPPORTED_DISTRIBUTION}. Use uniform, "
                "or choice."
            )
    if importlib.util.find_spec(OPTUNA) is None:
        raise UserError(
            f"search: {OPTUNA} needs the package {OPTUNA}. Install it with: pip install {OPTUNA}"
        )


def num_startup_trials(search: SearchSpec) -> int:
    """Return the number of random trials before the searcher's first choice."""
    return int(search[OPTUNA].get(STARTUP_OPTION, DEFAULT_STARTUP_TRIALS))


@dataclass(frozen=True)
class SearchResult:
    """What a searcher learns from one trial that has ended."""

    params: dict[str, Any]
    """Values of the sampled options."""
    success: float | None
    """Success rate of the best checkpoint; None if the trial failed."""
    was_stopped: bool
    """True if the scheduler stopped the trial."""
    validations: list[float]
    """Success rate of each validation, in the order of the checkpoints."""

    @classmethod
    def read(cls, trial_dir: TrialDir) -> SearchResult | None:
        """Read the result of a trial, or return None if it has not ended."""
        record = trial_dir.read_record()
        if record is None:
            return None
        validations = [
            float(metrics[SUCCESS_RATE])
            for metrics in trial_dir.read_validations()
            if SUCCESS_RATE in metrics
        ]
        success = None if record.status == FAILED else record.metrics.get(SUCCESS_RATE)
        return cls(record.params, success, record.status == STOPPED, validations)


def sample_by_results(
    search: SearchSpec,
    sample: SampleSpec,
    seed: Sequence[int],
    results: Sequence[SearchResult],
) -> dict[str, Any]:
    """Sample options with Optuna's tree-structured Parzen estimator (Bergstra et al., 2011).

    A new study learns all results each time. So the sample depends only on the arguments, and a
    sweep that resumes samples the same as one that was not interrupted.

    Args:
        seed: seed of the search space and number of the trial.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # The random trials at first are sampled elsewhere, so one result is enough.
    options = {**search[OPTUNA], STARTUP_OPTION: 1}
    tpe_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    domains = {key: tune_domain(spec) for key, spec in sample.items()}
    with warnings.catch_warnings():
        # Of options that Optuna calls experimental, and of lists as choices, which work in memory.
        warnings.simplefilter("ignore")
        searcher = OptunaSearch(
            OptunaSearch.convert_search_space(domains),
            metric=SUCCESS_RATE,
            mode="max",
            sampler=optuna.samplers.TPESampler(seed=tpe_seed, **options),
        )
    for result in results:
        searcher.add_evaluated_point(
            result.params,
            result.success,
            error=result.success is None,
            pruned=result.was_stopped,
            intermediate_values=result.validations,
        )
    values = searcher.suggest("next")
    return {key: plain_sample(values[key], domain) for key, domain in domains.items()}
