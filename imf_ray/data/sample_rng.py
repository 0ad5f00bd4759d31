"""Random numbers of a training sample, keyed by (seed, epoch, sample id).

A counter-based generator (Philox) gives every sample a stream of its own, so that what is drawn
for it does not depend on the rank, the batch or the history of the run.
"""

from __future__ import annotations

import numpy as np

_OBJECTIVE, _AUGMENTATION = 0, 1
TIME_UNIFORMS = 3
"""Uniform numbers that a time sampler may use: two times and one choice."""


def sample_noise_and_uniforms(
    seed: int, epoch: int, sample_ids: np.ndarray, noise_shape: tuple[int, int], draws: int = 1
) -> dict[str, np.ndarray]:
    """Noise and uniforms of the objective for each sample.

    Args:
        sample_ids: (n,) int64.
        noise_shape: (pred_horizon, action_dim).
        draws: independent draws for each sample; the first ones do not depend on how many follow.

    Returns:
        `noise` (n, pred_horizon, action_dim) float32 standard normal and `time_uniforms`
        (n, 3) float32 in (0, 1); for several draws (n, draws, ...).
    """
    count = len(sample_ids)
    noise = np.empty((count, draws, *noise_shape), dtype=np.float32)
    uniforms = np.empty((count, draws, TIME_UNIFORMS), dtype=np.float32)
    tiny = np.finfo(np.float32).eps
    for place, sample_id in enumerate(sample_ids):
        rng = _sample_rng(seed, epoch, sample_id, _OBJECTIVE)
        for draw in range(draws):
            noise[place, draw] = rng.standard_normal(noise_shape, dtype=np.float32)
            uniforms[place, draw] = rng.random(TIME_UNIFORMS, dtype=np.float32)
    found = {"noise": noise, "time_uniforms": uniforms.clip(tiny, 1.0 - tiny)}
    return found if draws > 1 else {name: values[:, 0] for name, values in found.items()}


def crop_offsets(seed: int, epoch: int, sample_ids: np.ndarray, cameras: int) -> np.ndarray:
    """Where the pictures of each sample are cropped.

    Returns:
        (n, cameras, 2) float32 in [0, 1), from the topmost and leftmost place to the last.
    """
    places = np.empty((len(sample_ids), cameras, 2), dtype=np.float32)
    for place, sample_id in enumerate(sample_ids):
        rng = _sample_rng(seed, epoch, sample_id, _AUGMENTATION)
        places[place] = rng.random((cameras, 2), dtype=np.float32)
    return places


def _sample_rng(seed: int, epoch: int, sample_id: int, purpose: int) -> np.random.Generator:
    """A stream of its own for each sample and purpose."""
    counter = [0, sample_id, purpose, 0]
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=counter))
