"""Statistics of state and action over the training episodes, computed once and cached."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imf_ray.data.episodes import EpisodeInfo, read_slice
from imf_ray.data.index import CACHE_DIR
from imf_ray.files import write_atomically

Statistics = dict[str, dict[str, list[float]]]
log = logging.getLogger(__name__)


def compute_statistics(
    episodes: Sequence[EpisodeInfo], objects: Sequence[str], action_dataset: str, digest: str
) -> Statistics:
    """Minimum, maximum, mean and standard deviation of each dimension of state and action.

    Args:
        episodes: the training split.
        objects: those whose poses are part of the state.
        action_dataset: `action` or `action_ee`.
        digest: of the index; a changed data set is computed anew.

    Returns:
        `{"qpos" | "action": {"min" | "max" | "mean" | "std": D numbers}}`.
    """
    names = [Path(episode.path).name for episode in episodes]
    key = hashlib.sha256(
        json.dumps([digest, action_dataset, names, *objects]).encode()
    ).hexdigest()[:16]
    cache = Path(episodes[0].path).parent / CACHE_DIR / f"statistics-{key}.json"
    try:
        return json.loads(cache.read_text())
    except FileNotFoundError:
        pass

    slices = [
        read_slice(e.path, (), objects, action_dataset, (0, e.length), (0, e.length))
        for e in episodes
    ]
    statistics = {
        "qpos": _describe(np.concatenate([s.qpos for s in slices])),
        "action": _describe(np.concatenate([s.action for s in slices])),
    }
    try:
        write_atomically(cache, json.dumps(statistics))
    except OSError as error:
        log.warning("Statistics are not cached: %s", error)
    return statistics


def _describe(values: np.ndarray) -> dict[str, list[float]]:
    values = values.astype(np.float64)
    return {
        "min": values.min(axis=0).tolist(),
        "max": values.max(axis=0).tolist(),
        "mean": values.mean(axis=0).tolist(),
        "std": values.std(axis=0).tolist(),
    }
