"""Search spaces: YAML files of fixed options and of lists to try."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from imf_ray.config import known_keys, load_config, to_override
from imf_ray.errors import UserError
from imf_ray.schema import Config

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


@dataclass(frozen=True)
class SearchSpace:
    """Options that all trials share, and the values of those that differ."""

    name: str
    fixed: dict[str, Any]
    grid: dict[str, list[Any]]

    def config(self, overrides: Sequence[str], params: dict[str, Any]) -> Config:
        """The configuration of the trial with these values of what varies.

        The command line's `overrides` win over what is fixed.

        Raises:
            UserError: as `load_config`; an override of an option that the grid varies.
        """
        clash = [key for key in self.grid if any(o.startswith(f"{key}=") for o in overrides)]
        if clash:
            raise UserError(
                f"{clash[0]} is varied by the search space {self.name}: take it off the command "
                "line, or write a search space of your own."
            )
        fixed = [to_override(key, value) for key, value in self.fixed.items()]
        varied = [to_override(key, value) for key, value in params.items()]
        return load_config([*fixed, *overrides, *varied])

    def combinations(self) -> list[dict[str, Any]]:
        """The parameters of every trial, in the order of the file."""
        return [
            dict(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        ]


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
    if not isinstance(content, dict) or set(content) - {"fixed", "grid"} or not content.get("grid"):
        raise UserError(
            f"{path} is not a search space: it holds `grid:` and, if need be, `fixed:`."
        )
    fixed, grid = content.get("fixed") or {}, content["grid"]
    for key, values in grid.items():
        if key not in known_keys():
            raise UserError(f"{path} varies {key}, which is not an option.")
        if key.startswith(NOT_VARIED):
            raise UserError(
                f"{path} varies {key}: trials of a sweep share the cluster, the task and the way "
                "they are judged. Run one sweep for each value."
            )
        if not isinstance(values, list) or not values:
            raise UserError(f"{path}: {key} needs a list of values, not {values!r}.")
    return SearchSpace(path.stem, fixed, grid)


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
