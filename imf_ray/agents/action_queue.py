"""Observation history and action queue: the window a policy sees and the action executed next."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


class ActionQueue:
    """Turns single observations into windows, and predicted action chunks into single actions.

    A control step is `add_observation`; then, if `needs_prediction`, `add_chunk` of the chunk that
    was predicted from `observation_window`; then `pop_action`. A queue serves one environment
    (time_axis=0) or a batch of environments in lockstep (time_axis=1).

    Only the last obs_horizon observations before the next prediction are used. `needs_images` says
    in advance whether the next observation is one of them, so that other frames need no rendering.

    Args:
        obs_horizon: observations in a window.
        num_action_steps: actions of a chunk that are executed.
        time_axis: position of the time dimension in a window.
    """

    def __init__(self, obs_horizon: int, num_action_steps: int, time_axis: int = 0) -> None:
        self.obs_horizon = obs_horizon
        self.num_action_steps = num_action_steps
        self.time_axis = time_axis
        self._history: deque[dict[str, Any]] = deque(maxlen=obs_horizon)
        self._actions: deque[Tensor] = deque()

    def reset(self) -> None:
        """Clear history and actions; the next observation is the first of an episode."""
        self._history.clear()
        self._actions.clear()

    @property
    def needs_images(self) -> bool:
        """True if the next observation will be part of a window and so needs its images."""
        return len(self._actions) < self.obs_horizon

    @property
    def needs_prediction(self) -> bool:
        """True if a new chunk is due before the next `pop_action`."""
        return not self._actions

    def add_observation(self, obs: Mapping[str, Any]) -> None:
        """Append an observation of one control step.

        Args:
            obs: "qpos" (..., state_dim); "images" {camera: (..., H, W, 3)}, optional when
                `needs_images` is False; "object_poses" {name: (..., 7)}, optional. Arrays are
                copied, because environments reuse theirs.
        """
        images = obs.get("images") if self.needs_images else None
        self._history.append(
            {
                "images": None if images is None else _copy_all(images),
                "qpos": _copy(obs["qpos"]),
                "object_poses": _copy_all(obs.get("object_poses", {})),
            }
        )

    def observation_window(self) -> dict[str, Any]:
        """The last obs_horizon observations, stacked over time; the first one fills a short window.

        Returns:
            "images" and "object_poses", a dict of arrays each, and "qpos".

        Raises:
            ValueError: there is no observation, or one has no images although it needs them.
        """
        if not self._history:
            raise ValueError("the observation history is empty; add an observation first")
        missing = self.obs_horizon - len(self._history)
        steps = [self._history[0]] * missing + list(self._history)
        if any(step["images"] is None for step in steps):
            raise ValueError(
                "an observation of the window has no images; provide them whenever needs_images is "
                "True"
            )
        window: dict[str, Any] = {
            group: {
                name: torch.stack([step[group][name] for step in steps], dim=self.time_axis)
                for name in steps[0][group]
            }
            for group in ("images", "object_poses")
        }
        window["qpos"] = torch.stack([step["qpos"] for step in steps], dim=self.time_axis)
        return window

    def add_chunk(self, chunk: Tensor) -> None:
        """Queue the executed part of a chunk (..., pred_horizon, action_dim).

        A chunk begins at the oldest observation of its window, so the action of the current step
        has index obs_horizon - 1.

        Raises:
            ValueError: the chunk is too short.
        """
        start, stop = self.obs_horizon - 1, self.obs_horizon - 1 + self.num_action_steps
        if chunk.shape[-2] < stop:
            raise ValueError(
                f"a chunk of {chunk.shape[-2]} actions has no actions {start} ... {stop - 1}; "
                "lower num_action_steps or raise pred_horizon"
            )
        self._actions.extend(chunk[..., start:stop, :].unbind(dim=-2))

    def pop_action(self) -> Tensor:
        """Remove and return the action (..., action_dim) of the current step.

        Raises:
            IndexError: the queue is empty.
        """
        return self._actions.popleft()


def _copy_all(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: _copy(array) for name, array in arrays.items()}


def _copy(array: Any) -> Tensor:
    return (
        array.clone() if isinstance(array, Tensor) else torch.from_numpy(np.array(array, order="C"))
    )
