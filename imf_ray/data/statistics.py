"""Statistics of states, actions and object poses over the training episodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from imf_ray.data.episode_formats import FORMATS
from imf_ray.data.episodes import QPOS, EpisodeFields, EpisodeMetadata, pose_dataset
from imf_ray.data.running_stats import RunningStats, merge

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
    return {
        "qpos": _merged(episode.stats[QPOS] for episode in episodes),
        "action": _merged(
            episode.stats[FORMATS[episode.format].actions[fields.action_space]]
            for episode in episodes
        ),
        "object_poses": {
            name: _merged(episode.stats[pose_dataset(name)] for episode in episodes)
            for name in fields.objects
        },
    }


def _merged(parts: Iterable[RunningStats]) -> VectorStatistics:
    """Merge the statistics of all episodes for one vector."""
    stats = merge(list(parts))
    return {
        "min": list(stats.min),
        "max": list(stats.max),
        "mean": list(stats.mean),
        "std": list(stats.std),
    }
