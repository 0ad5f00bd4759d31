"""The error of predicted actions on held-out episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imf_ray.agents.pretrained import load_agent
from imf_ray.data.episodes import EpisodeRef
from imf_ray.data.windows import sample_windows, window_spec_from_config
from imf_ray.training.run_records import ACTION_ERROR, ACTION_MAE, HOLD_MAE, MEAN_MAE

WINDOWS, BATCH = 256, 32
"""Number of windows that the errors are averaged over, and of windows per forward pass."""


@dataclass(frozen=True)
class ActionErrors:
    """Mean absolute errors of predicted actions.

    Padded actions are not counted. The windows and the noise are the same for all checkpoints of a
    data set. All but `normalized` count only the actions from the current step on, and average over
    the dimensions in the units of the data.
    """

    normalized: float
    """Of whole chunks, in units of normalized actions, whose dimensions have a range of 2."""
    policy: float
    hold: float | None
    """Of repeating the action before the current step. None if the policy sees one step only."""
    mean: float
    """Of the mean action of the training data."""

    def metrics(self) -> dict[str, float]:
        """Return the errors by the names of their metrics."""
        values = {
            ACTION_ERROR: self.normalized,
            ACTION_MAE: self.policy,
            HOLD_MAE: self.hold,
            MEAN_MAE: self.mean,
        }
        return {name: value for name, value in values.items() if value is not None}


def measure_action_errors(
    checkpoint: Path,
    val_episodes: Sequence[EpisodeRef],
    ema: bool = True,
    inference_steps: int | None = None,
) -> ActionErrors:
    """Return the errors of a checkpoint on windows of held-out episodes.

    Args:
        ema: use the EMA weights if the checkpoint has them.
        inference_steps: network calls per chunk; None for the agent's own number.
    """
    agent, config = load_agent(checkpoint, ema=ema)
    agent.inference_steps = inference_steps or agent.inference_steps
    windows = sample_windows(val_episodes, window_spec_from_config(config), WINDOWS, seed=0)
    rng = np.random.default_rng(0)
    normalize = agent.action_normalizer.normalize
    mean_action = torch.tensor(agent.get_normalization_stats()["action"]["mean"])
    current = agent.obs_horizon - 1  # index of the current step in a chunk
    errors: dict[str, list[torch.Tensor]] = {name: [] for name in ("n", "policy", "hold", "mean")}
    for start in range(0, len(windows["action"]), BATCH):
        batch = _batch_tensors(windows, slice(start, start + BATCH))
        actions, valid = batch.pop("action"), ~batch.pop("action_is_pad")
        noise = torch.from_numpy(rng.standard_normal(actions.shape, dtype=np.float32))
        predicted = agent.predict_action(batch, noise=noise)
        errors["n"].append((normalize(predicted) - normalize(actions)).abs()[valid])
        future, is_future = actions[:, current:], valid[:, current:]
        errors["policy"].append((predicted[:, current:] - future).abs()[is_future])
        errors["mean"].append((mean_action - future).abs()[is_future])
        if current:
            has_last = valid[:, current - 1 : current]  # not at the first step of an episode
            last = actions[:, current - 1 : current]
            errors["hold"].append((last - future).abs()[is_future & has_last])
    means = {name: float(torch.cat(e).double().mean()) for name, e in errors.items() if e}
    return ActionErrors(means["n"], means["policy"], means.get("hold"), means["mean"])


def _batch_tensors(arrays: Mapping[str, Any], batch: slice) -> dict[str, Any]:
    """Convert the same slice of all arrays to tensors, including arrays in nested mappings."""
    return {
        name: _batch_tensors(values, batch)
        if isinstance(values, Mapping)
        else torch.from_numpy(values[batch])
        for name, values in arrays.items()
    }
