"""Search spaces: YAML files of fixed options and of options that vary between trials.

A file has these keys:

    fixed         options that all trials share
    grid          options and lists of their values; each combination of values is a trial
    sample        options and the distribution (of Ray Tune) that their values are sampled from
    num_samples   number of samples, each a trial, for each combination of the grid
    seed          seed of the samples
    scheduler     Tune scheduler that stops trials whose success rate falls behind, and its options
    search        Tune searcher that samples later trials by the success of earlier ones
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from imf_ray.aliases import rename_option, rename_options, rename_overrides
from imf_ray.bundled import search_spaces_dir
from imf_ray.config import (
    CONFIG,
    GROUPS,
    RECIPE,
    announce_rename,
    find_yaml,
    load_config,
    to_override,
    typed_options,
)
from imf_ray.errors import UserError, error_source
from imf_ray.schema import Config, all_options, is_sweepable
from imf_ray.schema.values import convert
from imf_ray.sweep.distributions import DISTRIBUTIONS, sample_value
from imf_ray.sweep.searchers import check_searcher, num_startup_trials
from imf_ray.yaml_text import dump_value, noun, plain, read_yaml

DICTIONARIES = ("fixed", "grid", "sample", "scheduler", "search")
NUMBERS = ("num_samples", "seed")
"""Keys of a search space's file, by the type of their values."""
MAX_NAME_BYTES = 255
"""Maximum length of a folder's name. Longer names of trials are cut; each begins with a number."""


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
    search: dict[str, dict[str, Any]] = field(default_factory=dict)
    """`{name: options}`, see `searchers.py`. Empty: all samples are random."""

    @property
    def varied(self) -> list[str]:
        """The options that differ between trials."""
        return [*self.grid, *self.sample]

    def with_current_names(self) -> SearchSpace:
        """Return the same space with the current names of options and values."""
        fixed, grid, sample = map(rename_options, (self.fixed, self.grid, self.sample))
        return replace(self, fixed=fixed, grid=grid, sample=sample)

    def config(
        self,
        overrides: Sequence[str],
        params: dict[str, Any],
        defaults: Mapping[str, Any] | None = None,
    ) -> Config:
        """Return the configuration of the trial with these values of the varied options.

        Args:
            overrides: command-line options, which override the fixed options.
            params: values of the varied options.
            defaults: see `load_config`.

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
        sources = {
            rename_option(key): f"`{section}:` in the search space {self.name}"
            for section in ("fixed", "grid", "sample")
            for key in getattr(self, section)
            if rename_option(key) not in overridden
        }
        return load_config([*fixed, *overrides, *varied], sources, defaults)

    def combinations(self) -> list[dict[str, Any]]:
        """Return the combinations of the grid and of random samples in file order.

        Every call returns the same ones.
        """
        rng = np.random.default_rng(self.seed)
        trials = []
        for values in itertools.product(*self.grid.values()):
            for _ in range(self.num_samples):
                sampled = {key: sample_value(spec, rng) for key, spec in self.sample.items()}
                trials.append({**dict(zip(self.grid, values, strict=True)), **sampled})
        return trials

    def trials(self) -> dict[str, dict[str, Any]]:
        """Return the values of the varied options of each trial, by its name, in file order.

        Trials that the searcher chooses later have no values yet, and no values in their names.
        """
        combinations = enumerate(self.combinations())
        if not self.search:
            return {trial_name(number, params): params for number, params in combinations}
        num_random = num_startup_trials(self.search)
        return {
            trial_name(number, {}): params if number < num_random else {}
            for number, params in combinations
        }


def load_search_space(name: str) -> SearchSpace:
    """Read `search_spaces/NAME.yaml`, or the YAML file at that path.

    Raises:
        UserError: the file does not exist, or is not a valid search space.
    """
    option = f"search_space={name}"
    path = find_yaml("search_space", name, search_spaces_dir())
    tree = read_yaml(path, option)
    with error_source(f"{option}: {path}"):
        return _parse_space(path.stem, tree)


def _parse_space(name: str, tree: Mapping[str, Any]) -> SearchSpace:
    """Make a search space from the content of its file, and check it."""
    unknown = sorted(set(tree) - {*DICTIONARIES, *NUMBERS})
    if unknown:
        raise UserError(
            f"{unknown[0]} is not a key of a search space. Valid keys are "
            f"{', '.join((*DICTIONARIES, *NUMBERS))}."
        )
    sections: dict[str, Mapping[str, Any]] = {}
    for section in DICTIONARIES:
        value = tree.get(section)
        if plain(value) is not None and not isinstance(value, Mapping):
            raise UserError(
                f"{section}: {dump_value(value)} is {noun(value)}, not a dictionary. Write lines "
                f"`option: value` below `{section}:`."
            )
        sections[section] = value if isinstance(value, Mapping) else {}
    numbers = {key: convert(key, int, tree[key]) for key in NUMBERS if key in tree}
    space = SearchSpace(
        name,
        fixed=typed_options(sections["fixed"], (*GROUPS, RECIPE, CONFIG), announce_rename),
        grid={
            key: _grid_values(key, values)
            for key, values in rename_options(sections["grid"], announce_rename).items()
        },
        sample={
            key: _distribution(key, spec)
            for key, spec in rename_options(sections["sample"], announce_rename).items()
        },
        scheduler=plain(sections["scheduler"]),
        search=plain(sections["search"]),
        **numbers,
    )
    _check_space(space)
    return space


def _grid_values(key: str, values: Any) -> list[Any]:
    """Return the values of an option in `grid:`."""
    kind = _varied_kind(key)
    if not isinstance(values, list) or not values:
        raise UserError(
            f"grid: {key} needs a list of values such as [1, 2], not {dump_value(values)}."
        )
    typed = [convert(key, kind, value) for value in values]
    for value in typed:
        if typed.count(value) > 1:
            raise UserError(f"grid: {to_override(key, value)} is given twice. Remove one.")
    return typed


def _distribution(key: str, spec: Any) -> dict[str, list[Any]]:
    """Return the distribution of an option in `sample:` and its arguments."""
    kind = _varied_kind(key)
    names = list(spec) if isinstance(spec, Mapping) else []
    if len(names) != 1 or names[0] not in DISTRIBUTIONS or not isinstance(spec[names[0]], list):
        raise UserError(
            f"sample: {key} needs one of {', '.join(DISTRIBUTIONS)} with a list of arguments, such "
            f"as {{loguniform: [1e-4, 1e-2]}}, not {dump_value(spec)}."
        )
    (name,) = names
    is_choice = name == "choice"
    arguments = [convert(key, kind, v) if is_choice else plain(v) for v in spec[name]]
    try:
        value = sample_value({name: arguments}, np.random.default_rng(0))
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"sample: {key} cannot be sampled from {dump_value(spec)}: {error}."
        ) from error
    try:
        convert(key, kind, value)
    except UserError as error:
        fitting = "randint, lograndint or choice" if kind in (int, int | None) else "choice"
        raise UserError(
            f"sample: {key} cannot be sampled from {dump_value(spec)}, because {error} Use "
            f"{fitting}."
        ) from error
    return {name: arguments}


def _varied_kind(key: str) -> Any:
    """Return the type of an option that a search space varies."""
    if key not in all_options():
        raise UserError(f"{key} cannot be varied, because it is not an option.")
    if not is_sweepable(key):
        raise UserError(
            f"{key} cannot be varied: the trials of a sweep share the cluster, the task and the "
            "evaluation settings. Run one sweep for each value."
        )
    return all_options()[key].kind


def _check_space(space: SearchSpace) -> None:
    if not space.varied:
        raise UserError("This is not a search space: it varies no option by `grid:` or `sample:`.")
    for key in space.grid:
        if key in space.sample:
            raise UserError(f"{key} is varied twice, by `grid:` and by `sample:`.")
    fixed = rename_options(space.fixed)
    for key in space.varied:
        if rename_option(key) in fixed:
            raise UserError(f"{key} is varied, and also has a value in `fixed:`.")
    if space.num_samples < 1:
        raise UserError(f"num_samples={space.num_samples} must be at least 1.")
    if space.seed < 0:
        raise UserError(f"seed={space.seed} must be at least 0.")
    if space.num_samples > 1 and not space.sample:
        raise UserError(
            f"num_samples={space.num_samples} without `sample:` only repeats equal trials. To "
            "repeat trials with other seeds, vary train.seed."
        )
    _check_values("fixed", {key: v for key, v in fixed.items() if key in all_options()})
    for trial in space.combinations():
        _check_values("grid", {key: trial[key] for key in space.grid})
        _check_values("sample", {key: trial[key] for key in space.sample})
    if space.scheduler:
        from imf_ray.sweep.schedulers import check_scheduler  # imports Ray, which takes seconds

        check_scheduler(space.scheduler)
    if space.search:
        check_searcher(space.search, space.sample, has_grid=bool(space.grid))


def _check_values(section: str, values: Mapping[str, Any]) -> None:
    """Check values of options against the rules of each option."""
    with error_source(section):
        for key, value in values.items():
            all_options()[key].check(key, value)


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
    name = re.sub(r"[^\w.-]+", "_", "-".join(parts))
    return name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
