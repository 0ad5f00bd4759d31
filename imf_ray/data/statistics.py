"""Statistics of state and action over the training episodes."""

from __future__ import annotations

from collections.abc import Sequence

from imf_ray.data.episodes import QPOS, EpisodeFields, EpisodeMetadata, pose_dataset
from imf_ray.data.readers import FORMATS
from imf_ray.data.running_stats import RunningStats, beside, merge

Statistics = dict[str, dict[str, list[float]]]


def compute_statistics(episodes: Sequence[EpisodeMetadata], selection: EpisodeFields) -> Statistics:
    """Minimum, maximum, mean and standard deviation of each dimension of state and action.

    No file is read: what is merged are the moments that were found when each was checked.

    Args:
        episodes: the training split.
        selection: what of them is read; cameras do not matter.

    Returns:
        `{"qpos" | "action": {"min" | "max" | "mean" | "std": D numbers}}`.
    """
    states = [QPOS, *map(pose_dataset, selection.objects)]
    state = merge([beside([episode.moments[name] for name in states]) for episode in episodes])
    action = merge(
        [
            episode.moments[FORMATS[episode.format].actions[selection.action_space]]
            for episode in episodes
        ]
    )
    return {"qpos": _describe(state), "action": _describe(action)}


def _describe(moments: RunningStats) -> dict[str, list[float]]:
    return {
        "min": list(moments.min),
        "max": list(moments.max),
        "mean": list(moments.mean),
        "std": list(moments.std),
    }
