"""Random numbers of a training sample, a function of (seed, epoch, sample id).

Every sample has its own stream of a counter-based generator (Philox). Its random numbers therefore
do not depend on the rank, on the batch, or on the number of resumes.
"""

from __future__ import annotations

import numpy as np

_OBJECTIVE_STREAM, _AUGMENTATION_STREAM = 0, 1
TIME_UNIFORMS = 3
"""Number of uniform numbers per sample for a time sampler: two times and one choice."""


def sample_noise_and_uniforms(
    seed: int, epoch: int, sample_ids: np.ndarray, noise_shape: tuple[int, int], draws: int = 1
) -> dict[str, np.ndarray]:
    """Return the random numbers of the training objective for each sample.

    Args:
        sample_ids: (n,) int64.
        noise_shape: (pred_horizon, action_dim).
        draws: number of independent draws per sample. The first n draws are the same for any
            number of draws.

    Returns:
        `noise` (n, pred_horizon, action_dim) float32 standard normal and `time_uniforms`
        (n, 3) float32 in (0, 1). If `draws` is above 1, the shapes are (n, draws, ...).
    """
    count = len(sample_ids)
    noise = np.empty((count, draws, *noise_shape), dtype=np.float32)
    uniforms = np.empty((count, draws, TIME_UNIFORMS), dtype=np.float32)
    eps = np.finfo(np.float32).eps
    for index, sample_id in enumerate(sample_ids):
        rng = _sample_rng(seed, epoch, sample_id, _OBJECTIVE_STREAM)
        for draw in range(draws):
            noise[index, draw] = rng.standard_normal(noise_shape, dtype=np.float32)
            uniforms[index, draw] = rng.random(TIME_UNIFORMS, dtype=np.float32)
    arrays = {"noise": noise, "time_uniforms": uniforms.clip(eps, 1.0 - eps)}
    return arrays if draws > 1 else {name: values[:, 0] for name, values in arrays.items()}


def crop_offsets(seed: int, epoch: int, sample_ids: np.ndarray, cameras: int) -> np.ndarray:
    """Return random crop offsets for the images of each sample.

    Returns:
        (n, cameras, 2) float32 in [0, 1), as fractions of the maximum offsets (down, right).
    """
    offsets = np.empty((len(sample_ids), cameras, 2), dtype=np.float32)
    for index, sample_id in enumerate(sample_ids):
        rng = _sample_rng(seed, epoch, sample_id, _AUGMENTATION_STREAM)
        offsets[index] = rng.random((cameras, 2), dtype=np.float32)
    return offsets


def _sample_rng(seed: int, epoch: int, sample_id: int, stream: int) -> np.random.Generator:
    """Return the random generator of one sample and stream."""
    counter = [0, sample_id, stream, 0]
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=counter))
