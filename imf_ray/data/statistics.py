"""Statistics of states, actions and object poses over the training episodes."""

from __future__ import annotations

from collections.abc import Sequence

from imf_ray.data.episodes import EpisodeFields, EpisodeMetadata
from imf_ray.data.running_stats import merge

VectorStatistics = dict[str, list[float]]
"""`{"min" | "max" | "mean" | "std": D numbers}`."""
Statistics = dict[str, VectorStatistics | dict[str, VectorStatistics]]
"""`{"qpos": ..., "action": ..., "object_poses": {name: ...}}`, an argument of agents."""


def compute_statistics(episodes: Sequence[EpisodeMetadata], fields: EpisodeFields) -> Statistics:
    """Return minimum, maximum, mean and standard deviation of each dimension.

    No file is read: the statistics of each episode were computed when it was checked.

    Args:
        episodes: the training split.
        fields: the fields that are read. Its cameras are ignored.
    """
    space = fields.action_space
    return {
        "qpos": _merged(episodes, [episode.features.state for episode in episodes]),
        "action": _merged(episodes, [episode.features.actions[space] for episode in episodes]),
        "object_poses": {
            name: _merged(episodes, [(episode.features.poses[name],) for episode in episodes])
            for name in fields.objects
        },
    }


def _merged(
    episodes: Sequence[EpisodeMetadata], names: Sequence[tuple[str, ...]]
) -> VectorStatistics:
    """Merge the statistics of all episodes for one vector, with its parts in each episode."""
    parts = [episode.vector_stats(part) for episode, part in zip(episodes, names, strict=True)]
    stats = merge([part for part in parts if part is not None])
    return {
        "min": list(stats.min),
        "max": list(stats.max),
        "mean": list(stats.mean),
        "std": list(stats.std),
    }
