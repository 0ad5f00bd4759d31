"""Options that follow the data set of a run where they are not given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from imf_ray.config import load_config, to_override
from imf_ray.data.dataset_folder import find_dataset
from imf_ray.data.episode_choice import choose_episodes, choose_tasks
from imf_ray.data.episodes import EpisodeMetadata, whole_number
from imf_ray.data.index import check_dataset
from imf_ray.schema import Config
from imf_ray.storage import parse_path


def follow_data(config: Config, compose: Callable[[Mapping[str, Any]], Config]) -> Config:
    """Return the configuration of a run with the widths, cameras and rate of its data set.

    Args:
        config: the configuration without the data set.
        compose: makes the configuration from the values of options that are not given.

    Raises:
        UserError: the data set has no episodes.
    """
    return compose(data_defaults(config))


def resolve_config(config: Config, overrides: Sequence[str]) -> Config:
    """Return the configuration with what follows the data set, whose path becomes absolute.

    Args:
        overrides: the command-line options that `config` was made from.

    Raises:
        UserError: the data set has no episodes.
    """
    followed = follow_data(config, lambda defaults: load_config(overrides, defaults=defaults))
    followed.data.dataset_dir = str(parse_path(config.data.dataset_dir))
    return followed


def data_defaults(config: Config) -> dict[str, Any]:
    """Return the values that fit the first usable episode, by option.

    These are the widths of state and action and the control rate; the cameras, if the data set
    lacks one of the configured ones; and the image size, if all images are squares of one size.

    Raises:
        UserError: there are no episodes.
    """
    folder = parse_path(config.data.dataset_dir)
    format, paths = find_dataset(folder, config.data.format)
    results = check_dataset(
        folder, choose_episodes(paths, config.data.episodes), format, config.data.features
    )
    usable = [
        result
        for result in choose_tasks(results, config.data.tasks).values()
        if isinstance(result, EpisodeMetadata) and result.required_problem is None
    ]
    return _fitting_options(usable[0], config) if usable else {}


def describe_followed(before: Config, after: Config) -> str | None:
    """Return a line that names the options that follow the data set, or None if none changed."""
    keys = (
        "agent.state_dim",
        "agent.action_dim",
        "data.camera_names",
        "task.image_size",
        "task.control_hz",
    )
    values = {key: attrgetter(key)(after) for key in keys}
    changed = [
        to_override(key, value) for key, value in values.items() if attrgetter(key)(before) != value
    ]
    return f"From the data set: {' '.join(changed)}" if changed else None


def _fitting_options(episode: EpisodeMetadata, config: Config) -> dict[str, Any]:
    options: dict[str, Any] = {}
    actions = episode.features.actions.get(config.task.action_space, ())
    vectors = {"agent.state_dim": episode.features.state, "agent.action_dim": actions}
    for key, names in vectors.items():
        if (stats := episode.vector_stats(names)) is not None:
            options[key] = len(stats.mean)
    cameras = list(config.data.camera_names)
    if episode.images and not episode.images.keys() >= set(cameras):
        cameras = options["data.camera_names"] = list(episode.images)
    sizes = {episode.cameras[camera] for camera in cameras if camera in episode.images}
    if len(sizes) == 1 and len(set(*sizes)) == 1:
        ((options["task.image_size"], _),) = sizes
    rate = whole_number(episode.attributes.get("control_hz"), minimum=1)
    if rate is not None:
        options["task.control_hz"] = rate
    return options
