"""A trained policy for use in other programs, without Ray, MuJoCo or HDF5."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imf_ray.agents.base import VLAAgent
from imf_ray.agents.pretrained import load_agent
from imf_ray.bundled import policy_path
from imf_ray.models.normalization import POSE_DIM
from imf_ray.schema import Config


class LoadedPolicy:
    """A policy that maps the observation of each control step to an action.

    It predicts a chunk of actions whenever the previous chunk is used up. One object controls one
    robot.

    Attributes:
        camera_names: cameras whose images the policy needs.
        image_size: height and width of their images in pixels.
        state_dim: width of qpos.
        privileged_pose_objects: objects whose poses the policy needs; empty for a policy without
            privileged input.
        action_dim: width of an action.
        action_space: "joint" (joint targets in rad and grippers) or "ee" (twice xyz in m,
            quaternion wxyz, gripper).
        num_action_steps: number of actions executed between two predictions.
        control_hz: control steps per second in training.
        config: agent, data and task configuration of the training run.
    """

    def __init__(self, agent: VLAAgent, config: Config, seed: int = 0) -> None:
        self.camera_names = agent.camera_names
        self.image_size = config.task.image_size
        self.state_dim = agent.state_dim
        self.privileged_pose_objects = agent.privileged_pose_objects
        self.action_dim = agent.action_dim
        self.action_space = config.task.action_space
        self.num_action_steps = agent.num_action_steps
        self.control_hz = config.task.control_hz
        self.config = config
        self._agent = agent
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def needs_images(self) -> bool:
        """Check before each observation: if False, the cameras need not be rendered."""
        return self._agent.needs_images

    def reset(self, seed: int | None = None) -> None:
        """Start an episode: clear history and queued actions, and reseed the noise with `seed`."""
        self._agent.reset()
        if seed is not None:
            self._generator.manual_seed(seed)

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the action (action_dim,) of one control step.

        Args:
            observation: "images" {camera: (H, W, 3) uint8}, "qpos" (state_dim,), and
                "object_poses" {name: (7,)} if the policy has privileged objects; NumPy arrays or
                tensors. Other keys and cameras are ignored.

        Raises:
            ValueError: a key is missing, or its value has the wrong shape or type.
        """
        poses = observation.get("object_poses", {})
        inputs: dict[str, Any] = {
            "qpos": _batched(observation, "qpos", (self.state_dim,)).float(),
            "object_poses": {
                name: _batched(poses, name, (POSE_DIM,), "object_poses").float()
                for name in self.privileged_pose_objects
            },
        }
        if self.needs_images:
            images, shape = observation.get("images", {}), (self.image_size, self.image_size, 3)
            inputs["images"] = {
                camera: _batched(images, camera, shape, "images") for camera in self.camera_names
            }
            for camera, image in inputs["images"].items():
                if image.dtype != torch.uint8:
                    name = f"observation['images'][{camera!r}]"
                    raise ValueError(f"{name} is {image.dtype}; the policy takes uint8")
        return self._agent.select_action(inputs, generator=self._generator)[0].cpu().numpy()


def load_policy(
    path: str | Path, *, ema: bool = True, device: str = "cpu", seed: int = 0
) -> LoadedPolicy:
    """Load a policy from a checkpoint folder or a released policy such as policies/sim_transfer.

    Args:
        ema: use the EMA weights (averaged over training) if the folder has them.
        device: torch device of the network.
        seed: seed of the noise that actions are sampled from.

    Raises:
        UserError: the folder is not a checkpoint, or its weights do not fit its configuration.
    """
    agent, config = load_agent(policy_path(path), ema, device)
    return LoadedPolicy(agent, config, seed)


def _batched(
    values: Mapping[str, Any], key: str, shape: tuple[int, ...], group: str | None = None
) -> torch.Tensor:
    """Check the shape of values[key] and return it as a tensor with a batch axis.

    Args:
        group: key of `values` in the observation, for error messages; None for the top level.
    """
    name = f"observation[{key!r}]" if group is None else f"observation[{group!r}][{key!r}]"
    if key not in values:
        raise ValueError(f"{name} is missing (given: {', '.join(values) or 'none'})")
    value = values[key]
    tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; the policy takes {shape}")
    return tensor[None]
