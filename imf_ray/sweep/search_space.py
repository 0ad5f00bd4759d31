"""Search spaces: YAML files of fixed options, and of those that vary.

What varies is a `grid:` of lists, each combination of which is a trial, or is drawn at random for
each of `num_samples:` trials from what `sample:` says, with the names of Tune's distributions. A
`scheduler:` ends trials that fall behind, by the success of their validated checkpoints.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from ray import tune

from imf_ray.config import known_keys, load_config, to_override
from imf_ray.errors import UserError
from imf_ray.schema import Config
from imf_ray.sweep.schedulers import check_scheduler

NOT_VARIED = (
    "cluster.",
    "task.",
    "collect.",
    "evaluate.",
    "tune.",
    "train.device",
    "train.rollout_",
    "data.dataset_dir",
)
SEARCH_SPACE_DIR = Path(__file__).parents[2] / "search_spaces"
DISTRIBUTIONS = ("choice", "uniform", "loguniform", "quniform", "randint", "lograndint")
"""Tune's, by their names there."""
SIGNIFICANT_DIGITS = 4
"""Significant ones of a number that was drawn: it is part of the trial's name."""


@dataclass(frozen=True)
class SearchSpace:
    """Options that all trials share, and the values of those that differ."""

    name: str
    fixed: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    sample: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    """By option, the name and the arguments of its distribution."""
    num_samples: int = 1
    """Random draws for each combination of the grid."""
    seed: int = 0
    scheduler: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The name of a scheduler and its options (see `scheduling.py`); times are training steps."""

    @property
    def varied(self) -> list[str]:
        """The options that differ between trials."""
        return [*self.grid, *self.sample]

    def config(self, overrides: Sequence[str], params: dict[str, Any]) -> Config:
        """The configuration of the trial with these values of what varies.

        The command line's `overrides` win over what is fixed.

        Raises:
            UserError: as `load_config`; an override of an option that the grid varies.
        """
        clash = [key for key in self.varied if any(o.startswith(f"{key}=") for o in overrides)]
        if clash:
            raise UserError(
                f"{clash[0]} is varied by the search space {self.name}: take it off the command "
                "line, or write a search space of your own."
            )
        fixed = [to_override(key, value) for key, value in self.fixed.items()]
        varied = [to_override(key, value) for key, value in params.items()]
        return load_config([*fixed, *overrides, *varied])

    def combinations(self) -> list[dict[str, Any]]:
        """The parameters of every trial, in the order of the file; the same at every call."""
        rng = np.random.default_rng(self.seed)
        found = []
        for values in itertools.product(*self.grid.values()):
            for _ in range(self.num_samples):
                drawn = {key: _sample_value(what, rng) for key, what in self.sample.items()}
                found.append({**dict(zip(self.grid, values, strict=True)), **drawn})
        return found


def load_search_space(name: str) -> SearchSpace:
    """Read `search_spaces/NAME.yaml` or a YAML file of that path.

    Raises:
        UserError: there is no such file, or it is not a search space.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else SEARCH_SPACE_DIR / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in SEARCH_SPACE_DIR.glob("*.yaml")))
        raise UserError(f"search_space={name} is unknown. Known: {known}, or a YAML file's path.")
    content = OmegaConf.to_container(OmegaConf.load(path))
    parts = set(SearchSpace.__dataclass_fields__) - {"name"}
    if not isinstance(content, dict) or set(content) - parts:
        raise UserError(f"{path} is not a search space: it may hold {', '.join(sorted(parts))}.")
    space = SearchSpace(path.stem, **{str(k): v for k, v in content.items() if v is not None})
    _check(path, space)
    return space


def _check(path: Path, space: SearchSpace) -> None:
    if not space.varied:
        raise UserError(f"{path} is not a search space: nothing varies, by `grid:` or `sample:`.")
    for key in space.varied:
        if key not in known_keys():
            raise UserError(f"{path} varies {key}, which is not an option.")
        if key.startswith(NOT_VARIED):
            raise UserError(
                f"{path} varies {key}: trials of a sweep share the cluster, the task and the way "
                "they are judged. Run one sweep for each value."
            )
    for key, values in space.grid.items():
        if key in space.sample:
            raise UserError(f"{path} varies {key} twice, by `grid:` and by `sample:`.")
        if not isinstance(values, list) or not values:
            raise UserError(f"{path}: {key} needs a list of values, not {values!r}.")
    for key, what in space.sample.items():
        if not isinstance(what, dict) or len(what) != 1 or not set(what) <= set(DISTRIBUTIONS):
            raise UserError(
                f"{path}: {key} needs one of {', '.join(DISTRIBUTIONS)} with a list of arguments, "
                f"such as {{loguniform: [1e-4, 1e-2]}}, not {what!r}."
            )
        try:
            _sample_value(what, np.random.default_rng(0))
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: {key} cannot be drawn from {what}: {error}") from error
    if not isinstance(space.num_samples, int) or space.num_samples < 1:
        raise UserError(f"{path}: num_samples={space.num_samples!r} must be at least 1.")
    if space.num_samples > 1 and not space.sample:
        raise UserError(
            f"{path}: num_samples={space.num_samples} repeats the grid; vary train.seed."
        )
    try:
        check_scheduler(space.scheduler)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _sample_value(what: Mapping[str, list[Any]], rng: np.random.Generator) -> Any:
    """One value of a distribution, short enough for a folder's name."""
    ((name, arguments),) = what.items()
    distribution = getattr(tune, name)
    domain = distribution(arguments) if name == "choice" else distribution(*arguments)
    value = domain.sample(random_state=rng)
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    return value.item() if isinstance(value, np.generic) else value


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted key, or the whole key where two would be the same."""
    last = [key.rsplit(".", 1)[-1] for key in keys]
    return {
        key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)
    }


def trial_name(number: int, params: dict[str, Any]) -> str:
    """A folder name such as `00000-n_emb_64-n_layer_2`."""
    names = short_names(list(params))
    parts = [f"{number:05d}", *(f"{names[key]}_{params[key]}" for key in params)]
    return re.sub(r"[^\w.-]+", "_", "-".join(parts))
