"""Statistics of state and action over the training episodes, computed once and cached."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imf_ray.data.episodes import EpisodeInfo, Selection, read_slice
from imf_ray.data.index import CACHE_DIR
from imf_ray.files import write_atomically

Statistics = dict[str, dict[str, list[float]]]
log = logging.getLogger(__name__)


def compute_statistics(
    episodes: Sequence[EpisodeInfo], selection: Selection, digest: str
) -> Statistics:
    """Minimum, maximum, mean and standard deviation of each dimension of state and action.

    Args:
        episodes: the training split.
        selection: what of them is read; cameras do not matter.
        digest: of the index; a changed data set is computed anew.

    Returns:
        `{"qpos" | "action": {"min" | "max" | "mean" | "std": D numbers}}`.
    """
    names = [Path(episode.path).name for episode in episodes]
    vectors = dataclasses.replace(selection, cameras=(), image_size=None)
    described = [digest, dataclasses.asdict(vectors), names]
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
    cache = Path(episodes[0].path).parent / CACHE_DIR / f"statistics-{key}.json"
    try:
        return json.loads(cache.read_text())
    except FileNotFoundError:
        pass

    slices = [read_slice(e.path, vectors, (0, e.length), (0, e.length)) for e in episodes]
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
