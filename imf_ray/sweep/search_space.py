"""Search spaces: YAML files of fixed options and of options that vary between trials.

A file has these keys:

    fixed         options that all trials share
    grid          options and lists of their values; each combination of values is a trial
    sample        options and the distribution (of Ray Tune) that their values are sampled from
    num_samples   number of samples, each a trial, for each combination of the grid
    seed          seed of the samples
    scheduler     Tune scheduler that stops trials whose success rate falls behind, and its options
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from ray import tune

from imf_ray.aliases import rename_option, rename_options, rename_overrides
from imf_ray.bundled import search_space_names, search_space_path
from imf_ray.config import announce_rename, load_config, to_override
from imf_ray.errors import UserError
from imf_ray.schema import Config, all_options, is_sweepable
from imf_ray.sweep.schedulers import check_scheduler

DISTRIBUTIONS = ("choice", "uniform", "loguniform", "quniform", "randint", "lograndint")
"""Names of the functions in `ray.tune` that a `sample:` entry may use."""
SIGNIFICANT_DIGITS = 4
"""Significant digits of a sampled number, which is part of the trial's name."""


@dataclass(frozen=True)
class SearchSpace:
    """Options that all trials share, and the values of the options that vary.

    A sweep that was started with an earlier version has old option names in its space. They are not
    renamed, because trial names contain them. `config` accepts them.
    """

    name: str
    fixed: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    sample: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    """Maps each option to `{distribution: arguments}`."""
    num_samples: int = 1
    """Number of random samples for each combination of the grid."""
    seed: int = 0
    scheduler: dict[str, dict[str, Any]] = field(default_factory=dict)
    """`{name: options}`, see `schedulers.py`. Times are training steps. Empty: no scheduler."""

    @property
    def varied(self) -> list[str]:
        """The options that differ between trials."""
        return [*self.grid, *self.sample]

    def with_current_names(self) -> SearchSpace:
        """Return the same space with the current names of options and values."""
        fixed, grid, sample = map(rename_options, (self.fixed, self.grid, self.sample))
        return replace(self, fixed=fixed, grid=grid, sample=sample)

    def config(self, overrides: Sequence[str], params: dict[str, Any]) -> Config:
        """Return the configuration of the trial with these values of the varied options.

        Args:
            overrides: command-line options, which override the fixed options.
            params: values of the varied options.

        Raises:
            UserError: an override sets an option that the space varies; or see `load_config`.
        """
        overrides = rename_overrides(overrides, announce_rename)
        overridden = {item.partition("=")[0] for item in overrides}
        clashes = [key for key in self.varied if rename_option(key) in overridden]
        if clashes:
            raise UserError(
                f"{clashes[0]} is varied by the search space {self.name}. Remove it from the "
                "command line, or write your own search space."
            )
        fixed = [to_override(key, value) for key, value in rename_options(self.fixed).items()]
        varied = [to_override(key, value) for key, value in rename_options(params).items()]
        return load_config([*fixed, *overrides, *varied])

    def combinations(self) -> list[dict[str, Any]]:
        """Return the parameters of every trial in file order. Every call returns the same ones."""
        rng = np.random.default_rng(self.seed)
        trials = []
        for values in itertools.product(*self.grid.values()):
            for _ in range(self.num_samples):
                sampled = {key: _sample_value(spec, rng) for key, spec in self.sample.items()}
                trials.append({**dict(zip(self.grid, values, strict=True)), **sampled})
        return trials


def load_search_space(name: str) -> SearchSpace:
    """Read `search_spaces/NAME.yaml`, or the YAML file at that path.

    Raises:
        UserError: the file does not exist, or is not a valid search space.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else search_space_path(name)
    if not path.is_file():
        names = ", ".join(search_space_names())
        raise UserError(f"search_space={name} is unknown. Use {names}, or the path of a YAML file.")
    content = OmegaConf.to_container(OmegaConf.load(path))
    sections = set(SearchSpace.__dataclass_fields__) - {"name"}
    if not isinstance(content, dict) or set(content) - sections:
        raise UserError(
            f"{path} is not a search space. Valid keys are {', '.join(sorted(sections))}."
        )
    try:
        fields: dict[str, Any] = {
            str(section): rename_options(values, announce_rename)
            if isinstance(values, dict)
            else values
            for section, values in content.items()
            if values is not None
        }
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    space = SearchSpace(path.stem, **fields)
    _check_space(path, space)
    return space


def _check_space(path: Path, space: SearchSpace) -> None:
    if not space.varied:
        raise UserError(
            f"{path} is not a search space: it varies no option by `grid:` or `sample:`."
        )
    for key in space.varied:
        if key not in all_options():
            raise UserError(f"{path} varies {key}, which is not an option.")
        if not is_sweepable(key):
            raise UserError(
                f"{path} varies {key}: the trials of a sweep share the cluster, the task and the "
                "evaluation settings. Run one sweep for each value."
            )
    for key, values in space.grid.items():
        if key in space.sample:
            raise UserError(f"{path} varies {key} twice, by `grid:` and by `sample:`.")
        if not isinstance(values, list) or not values:
            raise UserError(f"{path}: {key} needs a list of values, not {values!r}.")
    for key, spec in space.sample.items():
        if not isinstance(spec, dict) or len(spec) != 1 or not set(spec) <= set(DISTRIBUTIONS):
            raise UserError(
                f"{path}: {key} needs one of {', '.join(DISTRIBUTIONS)} with a list of arguments, "
                f"such as {{loguniform: [1e-4, 1e-2]}}, not {spec!r}."
            )
        try:
            _sample_value(spec, np.random.default_rng(0))
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: {key} cannot be sampled from {spec}: {error}") from error
    if not isinstance(space.num_samples, int) or space.num_samples < 1:
        raise UserError(f"{path}: num_samples={space.num_samples!r} must be at least 1.")
    if space.num_samples > 1 and not space.sample:
        raise UserError(
            f"{path}: num_samples={space.num_samples} without `sample:` only repeats equal "
            "trials. To repeat trials with other seeds, vary train.seed."
        )
    try:
        check_scheduler(space.scheduler)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _sample_value(spec: Mapping[str, list[Any]], rng: np.random.Generator) -> Any:
    """Sample from `{distribution: arguments}`. Floats are rounded, so folder names stay short."""
    ((name, arguments),) = spec.items()
    distribution = getattr(tune, name)
    domain = distribution(arguments) if name == "choice" else distribution(*arguments)
    value = domain.sample(random_state=rng)
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    return value.item() if isinstance(value, np.generic) else value


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Map each dotted key to its last part, or to the whole key if others share that part."""
    last_parts = [key.rsplit(".", 1)[-1] for key in keys]
    return {
        key: part if last_parts.count(part) == 1 else key
        for key, part in zip(keys, last_parts, strict=True)
    }


def trial_name(number: int, params: dict[str, Any]) -> str:
    """Return the name of a trial and its folder, such as `00000-n_emb_64-n_layer_2`."""
    names = short_names(list(params))
    parts = [f"{number:05d}", *(f"{names[key]}_{params[key]}" for key in params)]
    return re.sub(r"[^\w.-]+", "_", "-".join(parts))
