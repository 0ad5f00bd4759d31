"""Command lines that a page offers, quoted for a shell and without secrets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

from imf_ray.config import (
    GROUPS,
    RUN_OPTIONS,
    config_to_dict,
    group_choices,
    load_config,
    to_override,
    typed_options,
)
from imf_ray.errors import UserError
from imf_ray.redaction import redact_command
from imf_ray.schema import Config, command_options

NUM_FRESH_EPISODES = 100
"""Number of episodes of an evaluation that a page proposes."""
TRAIN_AGAIN = "Train it again"
EVALUATE = "Evaluate it on fresh seeds"
EXPORT = "Export it without its training state"
RESUME = "Resume it"
COMPARE = "Compare the best two on fresh seeds"


def checkpoint_commands(checkpoint: str, recorded_seeds: Sequence[int] = ()) -> dict[str, str]:
    """Return the commands for one checkpoint, given by its path or URL.

    Args:
        recorded_seeds: seeds of the page's episodes. Fresh seeds follow the last one.
    """
    options = [f"evaluate.num_episodes={NUM_FRESH_EPISODES}"]
    if recorded_seeds:
        options.append(f"evaluate.seed={max(recorded_seeds) + 1}")
    return {
        EVALUATE: command("evaluate", to_override("checkpoint", checkpoint), *options),
        EXPORT: command("export", to_override("checkpoint", checkpoint), "exported_policy"),
    }


def compare_command(checkpoints: Sequence[str], num_recorded: int = 0) -> str:
    """Return the command that compares checkpoints on the same seeds.

    Args:
        num_recorded: number of episodes of the page, to which the command adds others.
    """
    num_episodes = num_recorded + NUM_FRESH_EPISODES
    return command("compare", *checkpoints, f"evaluate.num_episodes={num_episodes}")


def train_command(config: Config, run_name: str) -> str:
    """Return a command that trains with the options of a configuration, under another name.

    Groups of options are chosen so that few single options are left.

    Raises:
        UserError: the configuration cannot be written as options of this version.
    """
    target = flat_options(config)
    arguments = []
    for group, default in GROUPS.items():
        choice = max(group_choices(group), key=lambda name: _num_equal(group, name, target))
        if choice != default:
            arguments.append(f"{group}={choice}")
    names = [key for key in command_options("train") if key not in RUN_OPTIONS and key in target]
    base = _group_defaults(tuple(arguments))
    changed = [key for key in names if key not in base or base[key] != target[key]]
    while True:
        overrides = [to_override(key, target[key]) for key in names if key in changed]
        actual = flat_options(load_config([*arguments, *overrides]))
        # Some options take the value of a changed one by default.
        others = [key for key in names if actual.get(key) != target[key] and key not in changed]
        if not others:
            return command("train", *arguments, *overrides, to_override("run_name", run_name))
        changed += others


def flat_options(config: Config) -> dict[str, Any]:
    """Return all options of a configuration by their dotted names."""
    return typed_options(config_to_dict(config))


def _num_equal(group: str, choice: str, target: Mapping[str, Any]) -> int:
    """Return how many options have their target value if a group is chosen."""
    options = _group_defaults((f"{group}={choice}",))
    return sum(options.get(key) == value for key, value in target.items())


@cache
def _group_defaults(choices: tuple[str, ...]) -> dict[str, Any]:
    """Return all options if some groups are chosen; none if these do not fit each other."""
    try:
        return flat_options(load_config(choices))
    except UserError:
        return {}


@lru_cache(maxsize=10_000)
def command(name: str, *arguments: str) -> str:
    """Return a command line of the package."""
    return redact_command(["imf-ray", name, *arguments])
