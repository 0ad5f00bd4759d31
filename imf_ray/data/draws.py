"""Random numbers of a training sample, keyed by (seed, epoch, sample id).

A counter-based generator (Philox) gives every sample a stream of its own, so that what is drawn
for it does not depend on the rank, the batch or the history of the run.
"""

from __future__ import annotations

import numpy as np

TIME_UNIFORMS = 3
"""Uniform numbers that a time sampler may use: two times and one choice."""


def sample_draws(
    seed: int, epoch: int, sample_ids: np.ndarray, noise_shape: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Noise and uniforms of the objective for each sample.

    Args:
        sample_ids: (n,) int64.
        noise_shape: (pred_horizon, action_dim).

    Returns:
        `noise` (n, pred_horizon, action_dim) float32 standard normal and `time_uniforms`
        (n, 3) float32 in (0, 1).
    """
    noise = np.empty((len(sample_ids), *noise_shape), dtype=np.float32)
    uniforms = np.empty((len(sample_ids), TIME_UNIFORMS), dtype=np.float32)
    tiny = np.finfo(np.float32).eps
    for place, sample_id in enumerate(sample_ids):
        rng = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, sample_id, 0, 0]))
        noise[place] = rng.standard_normal(noise_shape, dtype=np.float32)
        uniforms[place] = rng.random(TIME_UNIFORMS, dtype=np.float32)
    return {"noise": noise, "time_uniforms": uniforms.clip(tiny, 1.0 - tiny)}
