"""Distributions of Ray Tune, which `sample:` in a search space names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ray.tune.search.sample import Domain

DISTRIBUTIONS = ("choice", "uniform", "loguniform", "quniform", "randint", "lograndint")
"""Names of the functions in `ray.tune` that a `sample:` entry may use."""
SIGNIFICANT_DIGITS = 4
"""Significant digits of a sampled number, which is part of the trial's name."""


def tune_domain(spec: Mapping[str, list[Any]]) -> Domain:
    """Return Tune's object for `{distribution: arguments}`."""
    from ray import tune  # takes seconds

    ((name, arguments),) = spec.items()
    distribution = getattr(tune, name)
    return distribution(arguments) if name == "choice" else distribution(*arguments)


def sample_value(spec: Mapping[str, list[Any]], rng: np.random.Generator) -> Any:
    """Sample from `{distribution: arguments}`."""
    domain = tune_domain(spec)
    return plain_sample(domain.sample(random_state=rng), domain)


def plain_sample(value: Any, domain: Domain) -> Any:
    """Return a sample as a Python value; a float is rounded, unless that leaves its domain."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        rounded = float(f"{value:.{SIGNIFICANT_DIGITS}g}")
        return rounded if domain.is_valid(rounded) else value
    return value
