"""Observation history and action queue: which observation is seen, which action runs."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


class ActionQueue:
    """Turns single observations into windows, and action chunks into single actions.

    One control step is `push(obs)`; if `needs_prediction`, `extend(policy(window()))`; then `pop()`.
    Holds one environment (time_axis=0) or a batch of environments in lock step (time_axis=1).

    The policy looks only at the last obs_horizon observations before a chunk runs out.
    `needs_images` says, before an observation is made, whether it is one of them, so that all other
    frames need no rendering.

    Args:
        obs_horizon: observations in a window.
        num_action_steps: actions of a chunk that are executed.
        time_axis: where `window` puts the time dimension.
    """

    def __init__(self, obs_horizon: int, num_action_steps: int, time_axis: int = 0) -> None:
        self.obs_horizon = obs_horizon
        self.num_action_steps = num_action_steps
        self.time_axis = time_axis
        self._history: deque[dict[str, Any]] = deque(maxlen=obs_horizon)
        self._actions: deque[Tensor] = deque()

    def reset(self) -> None:
        """Forgets everything: the next observation is the first of an episode."""
        self._history.clear()
        self._actions.clear()

    @property
    def needs_images(self) -> bool:
        """Whether the observation pushed next will be in a window, and so needs its images."""
        return len(self._actions) < self.obs_horizon

    @property
    def needs_prediction(self) -> bool:
        """Whether a new chunk is due before the next `pop`."""
        return not self._actions

    def push(self, obs: Mapping[str, Any]) -> None:
        """Appends an observation {"images": {camera: array}, "qpos": array}.

        Images may be left out where `needs_images` is False, and are not kept there. Arrays are
        copied, as simulators reuse theirs.
        """
        images = obs.get("images") if self.needs_images else None
        self._history.append(
            {
                "images": images and {name: _copy(image) for name, image in images.items()},
                "qpos": _copy(obs["qpos"]),
            }
        )

    def window(self) -> dict[str, Any]:
        """The last obs_horizon observations, stacked over time; the oldest fills a short history.

        Raises:
            ValueError: if nothing was pushed, or an observation came without the images it needs.
        """
        if not self._history:
            raise ValueError("the observation history is empty; push an observation first")
        missing = self.obs_horizon - len(self._history)
        steps = [self._history[0]] * missing + list(self._history)
        if any(step["images"] is None for step in steps):
            raise ValueError(
                "an observation of the window has no images; render them whenever needs_images says"
            )
        return {
            "images": {
                name: torch.stack([step["images"][name] for step in steps], dim=self.time_axis)
                for name in steps[0]["images"]
            },
            "qpos": torch.stack([step["qpos"] for step in steps], dim=self.time_axis),
        }

    def extend(self, chunk: Tensor) -> None:
        """Queues the executed part of a chunk (..., pred_horizon, action_dim).

        A chunk starts at the oldest observation of its window, so that the action of the current
        step is at index obs_horizon - 1.

        Raises:
            ValueError: if the chunk is too short.
        """
        start, stop = self.obs_horizon - 1, self.obs_horizon - 1 + self.num_action_steps
        if chunk.shape[-2] < stop:
            raise ValueError(
                f"a chunk of {chunk.shape[-2]} actions has no actions {start} ... {stop - 1}; "
                "lower num_action_steps or raise pred_horizon"
            )
        self._actions.extend(chunk[..., start:stop, :].unbind(dim=-2))

    def pop(self) -> Tensor:
        """The action (..., action_dim) of the current step.

        Raises:
            IndexError: if the queue is empty.
        """
        return self._actions.popleft()


def _copy(array: Any) -> Tensor:
    return (
        array.clone() if isinstance(array, Tensor) else torch.from_numpy(np.array(array, order="C"))
    )
