"""Recognizes the format of a data set and lists its episodes."""

from __future__ import annotations

from collections.abc import Callable

from imf_ray.data.channel_order import AUTO
from imf_ray.data.episode_files import dataset_option, list_episodes, require_episodes
from imf_ray.data.readers import CONTAINERS, FORMATS, container_of
from imf_ray.storage import AnyPath


def list_dataset(folder: AnyPath, format: str = AUTO) -> tuple[str, list[AnyPath]]:
    """Return the format of a data set and the addresses of its episodes, if it has any.

    Args:
        folder: the folder, file or URL of the data set.
        format: value of `data.format`. The returned format is the same, unless it is `auto` and one
            of `CONTAINERS` is recognized. `auto` then stands for HDF5 files in any layout.

    Raises:
        UserError: the list of episodes cannot be read.
    """
    for name in CONTAINERS if format == AUTO else {format} & {*CONTAINERS}:
        matches = FORMATS[name].may_match(folder) and container_of(name).matches(folder)
        if format == name or matches:
            return name, container_of(name).list_episodes(folder)
    return format, list_episodes(folder)


def find_dataset(
    folder: AnyPath, format: str = AUTO, as_argument: Callable[[AnyPath], str] = dataset_option
) -> tuple[str, list[AnyPath]]:
    """Return the format of a data set and the addresses of its episodes, at least one.

    Args:
        folder, format: see `list_dataset`.
        as_argument: returns the argument of the command line for a folder, for the message.

    Raises:
        UserError: there is none. The message names the files and folders that may be meant.
    """
    name, episodes = list_dataset(folder, format)
    if name in CONTAINERS and episodes:
        return name, episodes
    return name, require_episodes(folder, as_argument)
