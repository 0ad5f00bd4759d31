"""Suggests the option that an argument of the command line without `key=` may be meant for."""

from __future__ import annotations

from collections.abc import Iterator

from imf_ray.bundled import search_spaces_dir
from imf_ray.config import (
    CONFIG,
    GROUPS,
    RECIPE,
    YAML_SUFFIXES,
    group_choices,
    shell_override,
    yaml_names,
)
from imf_ray.errors import UserError
from imf_ray.folders import RUNS, FolderKind, folder_kind
from imf_ray.schema import command_options
from imf_ray.storage import AnyPath, authoritative_path, is_remote, local_dir

SEARCH_SPACE, CHECKPOINT, DATASET = "search_space", "checkpoint", "data.dataset_dir"


def option_for(argument: str, command: str) -> str | None:
    """Return the options, as they are typed, that an argument may be meant for.

    Args:
        argument: an argument without `=`, such as the path of a checkpoint.
        command: name of the command.

    Returns:
        Text such as `checkpoint=DIR`, or None if no option fits.
    """
    options = command_options(command)
    if argument in (*options, *GROUPS, RECIPE, CONFIG):
        return f"{argument}=VALUE without spaces"
    for key, names in _names(command):
        if argument in names:
            return shell_override(key, argument)
    if argument.lower().endswith(YAML_SUFFIXES):
        keys = (SEARCH_SPACE,) if SEARCH_SPACE in options else (CONFIG, RECIPE)
        return " or ".join(shell_override(key, argument) for key in keys)
    if CHECKPOINT in options:
        return shell_override(CHECKPOINT, argument)
    try:
        folder = authoritative_path(local_dir(argument))
        kind = folder_kind(folder)
    except UserError:
        return None
    if kind == FolderKind.CHECKPOINT and "run_name" in options:
        folder = folder.parent
        kind = folder_kind(folder)
    if kind in RUNS and "run_name" in options:
        return _run_options(folder)
    is_data = kind == FolderKind.DATA_SET or (command == "collect" and not is_remote(argument))
    return shell_override(DATASET, argument) if is_data and DATASET in options else None


def _names(command: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the options that take the name of a shipped file, and these names."""
    if command == "tune":
        yield SEARCH_SPACE, yaml_names(search_spaces_dir())
    for group in (RECIPE, *GROUPS):
        yield group, group_choices(group)


def _run_options(folder: AnyPath) -> str:
    """Return the options that name a run or sweep."""
    storage = shell_override("storage_path", str(folder.parent))
    return f"{shell_override('run_name', folder.name)} {storage}"
