"""A trained policy for use in other programs, without Ray, MuJoCo or HDF5.

docs/policy.md is the guide: inputs, resizing, units, chunks, seeds and devices.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imf_ray.agents.base import VLAAgent
from imf_ray.agents.checks import image_fault
from imf_ray.agents.pretrained import POLICY_FILES, default_tensors, load_agent
from imf_ray.bundled import policy_dir
from imf_ray.checkpoint_dir import MANIFEST_FILE
from imf_ray.folders import require_checkpoint, verify_checkpoint
from imf_ray.images import center_crop_resize
from imf_ray.models.normalization import POSE_DIM
from imf_ray.schema import Config
from imf_ray.storage import download

log = logging.getLogger(__name__)


class LoadedPolicy:
    """A policy that maps the observation of each control step to an action.

    It predicts a chunk of actions whenever the previous chunk is used up. One object controls one
    robot, or a batch of robots that step together. Calls from several threads must not overlap;
    load one policy for each thread.

    Attributes:
        camera_names: cameras whose images the policy needs.
        image_size: height and width in pixels to which images are scaled.
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
        self._generator = torch.Generator("cpu")
        self._resized_sizes: set[tuple[str, tuple[int, ...]]] = set()
        self.reset(seed)

    @property
    def needs_images(self) -> bool:
        """Check before each observation: if False, the cameras need not be rendered."""
        return self._agent.needs_images

    def reset(self, seed: int | None = None) -> None:
        """Start an episode: clear history and queued actions, and reseed the noise with `seed`.

        A policy that was just loaded needs no reset.

        Raises:
            ValueError: the seed is not an integer of at most 64 bits.
        """
        if seed is not None:
            try:
                self._generator.manual_seed(operator.index(seed))
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(f"seed={seed!r} is not an integer of at most 64 bits") from error
        self._agent.reset()

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the action of one control step, as float32 in the units of training.

        Args:
            observation: "images" {camera: (H, W, 3) uint8}, "qpos" (state_dim,), and
                "object_poses" {name: (7,)} if the policy has privileged objects. Values are arrays,
                tensors on any device or nested lists. Every value may have a leading batch axis B.
                Images are read only if `needs_images` is True. Images of another size are cropped
                to their central square and scaled. Other keys and cameras are ignored.

        Returns:
            (action_dim,), or (B, action_dim) for a batch.

        Raises:
            ValueError: a key is missing, a value has a wrong shape or type or is not finite, or
                the batch size differs from that of the episode's earlier observations. The
                observation is then not used. Also if the predicted action is not finite.
        """
        inputs = self._read(observation)
        is_batch = inputs["qpos"].ndim == 2
        if not is_batch:
            inputs = _add_batch_axis(inputs)
        with default_tensors():
            actions = self._agent.select_action(inputs, generator=self._generator).cpu().numpy()
        if not np.isfinite(actions).all():
            raise ValueError(
                "the predicted action is not finite; check the units of qpos and object_poses"
            )
        return actions if is_batch else actions[0]

    def _read(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Convert the values of an observation that the policy uses to arrays, and check them.

        Returns:
            "qpos", "object_poses" and, if they are needed, "images", all with or all without a
            batch axis.
        """
        if not isinstance(observation, Mapping):
            hint = ""
            if isinstance(observation, tuple):
                hint = "; reset() and step() of gymnasium return it as the first item of a tuple"
            raise ValueError(
                f"the observation is a {type(observation).__name__}, but must be a mapping{hint}"
            )
        groups = {"images": self.camera_names if self.needs_images else ()}
        groups["object_poses"] = self.privileged_pose_objects
        missing = [
            key for key in ("qpos", *groups) if groups.get(key, True) and key not in observation
        ]
        if missing:
            raise ValueError(
                f"observation lacks {', '.join(missing)} (given: "
                f"{', '.join(map(str, observation)) or 'none'}). The policy takes "
                f"{self._describe_inputs()}."
            )
        qpos = _vector("observation['qpos']", observation["qpos"], self.state_dim)
        lead = {"B": len(qpos)} if qpos.ndim == 2 else {}
        values: dict[str, Any] = {"qpos": qpos, "images": {}, "object_poses": {}}
        for group, keys in groups.items():
            for key in keys:
                name = f"observation[{group!r}][{key!r}]"
                value = _member(observation[group], group, key, keys)
                if group == "images":
                    values[group][key] = self._image(name, value, lead)
                else:
                    values[group][key] = _vector(name, value, POSE_DIM, lead)
        return values

    def _image(self, name: str, value: Any, lead: Mapping[str, int]) -> np.ndarray:
        """Check an image, or a batch of images, and scale it to the size of training."""
        image = _to_array(name, value)
        if isinstance(value, (list, tuple)) and image.dtype.kind in "iu":
            if image.size and not 0 <= image.min() <= image.max() <= 255:
                raise ValueError(f"{name} has values outside of 0 to 255")
            image = image.astype(np.uint8)  # lists have no type of their own
        fault = image_fault(image.shape, str(image.dtype), list(lead))
        if fault is not None:
            raise ValueError(f"{name}: {fault}")
        _check_batch(name, image, lead)
        size = image.shape[-3:-1]
        if size != (self.image_size, self.image_size) and (name, size) not in self._resized_sizes:
            self._resized_sizes.add((name, size))
            log.warning(
                "%s has %d x %d pixels. Its central square is scaled to %d x %d, the size in "
                "training.",
                name,
                *size,
                self.image_size,
                self.image_size,
            )
        frames = image if lead else image[None]
        frames = center_crop_resize(frames, self.image_size)
        return frames if lead else frames[0]

    def _describe_inputs(self) -> str:
        """Return the keys and shapes that an observation needs."""
        inputs = [f"qpos ({self.state_dim},)"]
        if self.camera_names:
            inputs.append(f"images {{{', '.join(self.camera_names)}}}, each (H, W, 3) uint8")
        if self.privileged_pose_objects:
            names = ", ".join(self.privileged_pose_objects)
            inputs.append(f"object_poses {{{names}}}, each ({POSE_DIM},)")
        return "; ".join(inputs)


def load_policy(
    path: str | Path, *, ema: bool = True, device: str | torch.device = "cpu", seed: int = 0
) -> LoadedPolicy:
    """Load a policy from a checkpoint folder or a released policy such as policies/sim_transfer.

    Args:
        path: a local path or a URL. `~` is the home folder. The folder of a run is refused, because
            a run has several checkpoints; the message names them.
        ema: use the EMA weights (averaged over training) if the folder has them.
        device: torch device of the network.
        seed: seed of the noise that actions are sampled from.

    Raises:
        UserError: the folder is not a checkpoint, a file in it is missing or damaged, its weights
            do not fit its configuration, `ema=False` is given for an exported policy, or the device
            does not exist.
        ValueError: the seed is not an integer of at most 64 bits.
    """
    folder = policy_dir(path)
    require_checkpoint(folder)
    download(folder, *POLICY_FILES, MANIFEST_FILE)
    verify_checkpoint(folder, *POLICY_FILES)
    agent, config = load_agent(folder, ema, device)
    return LoadedPolicy(agent, config, seed)


def _member(group: Any, name: str, key: str, keys: tuple[str, ...]) -> Any:
    """Return group[key], or raise a ValueError that names the keys that were given."""
    if not isinstance(group, Mapping):
        raise ValueError(
            f"observation[{name!r}] is a {type(group).__name__}, but must be a mapping: "
            f"{{{', '.join(f'{needed!r}: ...' for needed in keys)}}}"
        )
    if key not in group:
        raise ValueError(
            f"observation[{name!r}] lacks {key!r} (given: {', '.join(map(str, group)) or 'none'}; "
            f"needed: {', '.join(keys)})"
        )
    return group[key]


def _to_array(name: str, value: Any) -> np.ndarray:
    """Convert a tensor on any device, an image object or nested lists to an array of numbers."""
    mode = getattr(value, "mode", "RGB")
    if isinstance(mode, str) and mode != "RGB":
        raise ValueError(f"{name} is a PIL image of mode {mode}; use image.convert('RGB')")
    try:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is not an array of numbers: {error}") from error
    if array.dtype.kind not in "fiu":
        raise ValueError(
            f"{name} is not an array of numbers: {type(value).__name__} of type {array.dtype}"
        )
    return array


def _vector(name: str, value: Any, width: int, lead: Mapping[str, int] | None = None) -> np.ndarray:
    """Convert a vector, or a batch of vectors, to float32.

    Args:
        lead: the batch axis and its length; None accepts a vector as well as a batch of any size.
    """
    array = _to_array(name, value)
    allowed = (1, 2) if lead is None else (len(lead) + 1,)
    if array.ndim not in allowed or array.shape[-1] != width or 0 in array.shape:
        shapes = [f"({width},)", f"(B, {width})"]
        shapes = [shapes[ndim - 1] for ndim in allowed]
        raise ValueError(
            f"{name} has shape {array.shape}, but the policy takes {' or '.join(shapes)}"
        )
    _check_batch(name, array, lead or {})
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name} is {array[index]} at index {', '.join(map(str, index))}")
    return array


def _check_batch(name: str, array: np.ndarray, lead: Mapping[str, int]) -> None:
    """Check that an array has the batch size of qpos."""
    if lead and len(array) != lead["B"]:
        raise ValueError(
            f"{name} has shape {array.shape}, but observation['qpos'] has {lead['B']} rows"
        )


def _add_batch_axis(values: Mapping[str, Any]) -> dict[str, Any]:
    """Add a leading axis to all arrays, also in nested mappings."""
    return {
        key: _add_batch_axis(value) if isinstance(value, Mapping) else value[None]
        for key, value in values.items()
    }
