"""The queue between an environment and a policy: recent observations and predicted actions."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


class ActionQueue:
    """Makes windows of single observations, and single actions of predicted action chunks.

    A control step is::

        queue.add_observation(obs)  # images are needed if `queue.needs_images` was True before
        if queue.needs_prediction:
            queue.add_chunk(predict(queue.observation_window()))
        action = queue.pop_action()

    A queue serves one environment (time_axis=0) or a batch of environments that step together
    (time_axis=1).

    Args:
        obs_horizon: number of observations in a window.
        num_action_steps: number of actions of a chunk that are executed.
        time_axis: position of the time dimension in a window.
    """

    def __init__(self, obs_horizon: int, num_action_steps: int, time_axis: int = 0) -> None:
        self.obs_horizon = obs_horizon
        self.num_action_steps = num_action_steps
        self.time_axis = time_axis
        self._history: deque[dict[str, Any]] = deque(maxlen=obs_horizon)
        self._actions: deque[Tensor] = deque()

    def reset(self) -> None:
        """Clear history and actions. The next observation starts an episode."""
        self._history.clear()
        self._actions.clear()

    @property
    def needs_images(self) -> bool:
        """Check before each observation: if False, the cameras need not be rendered.

        The policy only uses the last obs_horizon observations before a prediction.
        """
        return len(self._actions) < self.obs_horizon

    @property
    def needs_prediction(self) -> bool:
        """True if `add_chunk` must be called before the next `pop_action`."""
        return not self._actions

    def add_observation(self, obs: Mapping[str, Any]) -> None:
        """Append the observation of one control step.

        Args:
            obs: "qpos" (..., state_dim), "images" {camera: (..., H, W, 3)} and, optionally,
                "object_poses" {name: (..., 7)}. Images are required if `needs_images` is True and
                ignored otherwise. Arrays are copied to tensors, because an environment may
                overwrite them.

        Raises:
            ValueError: qpos has another shape than in the previous observation.
        """
        images = obs.get("images") if self.needs_images else None
        step: dict[str, Any] = {
            "images": None if images is None else _to_tensors(images),
            "qpos": _to_tensor(obs["qpos"]),
            "object_poses": _to_tensors(obs.get("object_poses", {})),
        }
        if self._history and step["qpos"].shape != self._history[-1]["qpos"].shape:
            raise ValueError(
                f"qpos has shape {tuple(step['qpos'].shape)}, but the episode's previous one has "
                f"{tuple(self._history[-1]['qpos'].shape)}; call reset() when an episode starts"
            )
        self._history.append(step)

    def observation_window(self) -> dict[str, Any]:
        """Stack the last obs_horizon observations along the time axis.

        If there are fewer (start of an episode), the oldest observation is repeated at the front.

        Returns:
            "qpos" (obs_horizon, state_dim), "images" {camera: (obs_horizon, H, W, 3)} and
            "object_poses" {name: (obs_horizon, 7)}, for time_axis=0.

        Raises:
            ValueError: there is no observation, or an observation lacks its images.
        """
        if not self._history:
            raise ValueError("the observation history is empty; add an observation first")
        num_repeats = self.obs_horizon - len(self._history)
        steps = [self._history[0]] * num_repeats + list(self._history)
        if any(step["images"] is None for step in steps):
            raise ValueError(
                "an observation of the window has no images; provide images whenever needs_images "
                "is True"
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
        """Queue the actions of a chunk (..., pred_horizon, action_dim) that are executed.

        A chunk starts at the oldest observation of its window, so the action of the current control
        step has index obs_horizon - 1.

        Raises:
            ValueError: the chunk is too short.
        """
        start, stop = self.obs_horizon - 1, self.obs_horizon - 1 + self.num_action_steps
        if chunk.shape[-2] < stop:
            raise ValueError(
                f"the chunk has {chunk.shape[-2]} actions but {stop} are needed; lower "
                "num_action_steps or raise pred_horizon"
            )
        self._actions.extend(chunk[..., start:stop, :].unbind(dim=-2))

    def pop_action(self) -> Tensor:
        """Remove and return the action (..., action_dim) of the current control step.

        Raises:
            IndexError: the queue is empty.
        """
        return self._actions.popleft()


def _to_tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: _to_tensor(array) for name, array in arrays.items()}


def _to_tensor(array: Any) -> Tensor:
    """Copy an array or tensor to a tensor."""
    return (
        array.clone() if isinstance(array, Tensor) else torch.from_numpy(np.array(array, order="C"))
    )
