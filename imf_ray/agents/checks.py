"""Checks of agent options, of observations and of a batch's noise samples."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from imf_ray.models.normalization import POSE_DIM

CONDITIONING_MODES = ("single_token", "multi_token")
ACTION_SPACES = ("joint", "ee")
EE_ACTION_DIM = 16
"""Width of an end-effector action: twice xyz, quaternion wxyz, gripper."""
Lead = Mapping[str, int | None]
"""Names of an input's leading axes and their lengths; None accepts any length."""


class PolicyInputs(Protocol):
    """The attributes of an agent that determine its inputs."""

    state_dim: int
    action_dim: int
    obs_horizon: int
    pred_horizon: int
    privileged_pose_objects: tuple[str, ...]
    camera_names: tuple[str, ...]
    image_size: int | None


def check_batch(agent: PolicyInputs, batch: Mapping[str, Any], device: torch.device) -> None:
    """Check that a training batch fits an agent, see `check_windows`."""
    check_windows(agent, batch, device)
    lead = {"B": len(batch["qpos"]), "pred_horizon": agent.pred_horizon}
    _check_vector("action", _array("action", batch, "action", device), lead, agent.action_dim)
    is_pad = _array("action_is_pad", batch, "action_is_pad", device)
    _check_shape("action_is_pad", is_pad, lead, [])


def check_windows(agent: PolicyInputs, obs: Mapping[str, Any], device: torch.device) -> None:
    """Check that a batch of observation windows fits an agent on a device.

    Only shapes, types and devices are read, no values.

    Raises:
        ValueError: an input is missing, or has a wrong shape, type or device.
    """
    lead = {"B": None, "obs_horizon": agent.obs_horizon}
    check_observation(agent, obs, lead, device=device)


def check_observation(
    agent: PolicyInputs,
    obs: Mapping[str, Any],
    lead: Lead,
    images: bool = True,
    device: torch.device | None = None,
) -> None:
    """Check that an observation fits an agent, see `check_windows`.

    Args:
        lead: the leading axes of all inputs, first the batch axis "B".
        images: check the images as well.
        device: device of the inputs, which must be tensors; None accepts arrays and any device.
    """
    qpos = _array("qpos", obs, "qpos", device)
    _check_vector("qpos", qpos, lead, agent.state_dim)
    lead = {**lead, "B": len(qpos)}
    for key in agent.privileged_pose_objects:
        name = f"object_poses[{key!r}]"
        _check_vector(name, _array(name, obs.get("object_poses"), key, device), lead, POSE_DIM)
    for camera in agent.camera_names if images else ():
        name = f"image of camera {camera}"
        image = _array(name, obs.get("images"), camera, device)
        shape, size = tuple(image.shape), agent.image_size
        fault = image_fault(shape, str(image.dtype), list(lead))
        if fault is not None:
            raise ValueError(f"{name}: {fault}")
        _check_shape(name, image, lead, ["H", "W", "3"])
        if size is not None and shape[-3:-1] != (size, size):
            raise ValueError(
                f"{name} has {shape[-3]} x {shape[-2]} pixels, but the policy was trained on "
                f"{size} x {size}; resize it with imf_ray.images.center_crop_resize, or use "
                "imf_ray.load_policy, which does so"
            )


def image_fault(shape: tuple[int, ...], dtype: str, lead: Sequence[str] = ()) -> str | None:
    """Return why an image is refused, or None if it is (*lead, H, W, 3) uint8.

    A height of 3 is taken for color channels in front, unless the width is 3 as well.
    """
    dtype = dtype.removeprefix("torch.")
    if len(shape) != len(lead) + 3:
        hint = "all inputs have a batch axis or none has, and the color axis is the last one"
    elif shape[-3] == 3 and shape[-2] != 3:
        hint = "the color axis comes first; move it to the end with np.moveaxis(image, -3, -1)"
    elif shape[-1] == 4:
        hint = "there is an alpha channel; remove it with image[..., :3]"
    elif shape[-1] == 1:
        hint = "there is one gray channel; repeat it with np.repeat(image, 3, axis=-1)"
    elif shape[-1] != 3 or 0 in shape:
        hint = "the last axis must be red, green and blue"
    elif dtype != "uint8":
        return (
            f"the type is {dtype}, but the policy takes uint8 from 0 to 255; convert floats from "
            "0 to 1 with (image * 255).round(), and 16 bits with image // 257"
        )
    else:
        return None
    axes = ", ".join([*lead, "H", "W", "3"])
    return f"the shape is {shape}, but the policy takes ({axes}): {hint}"


def _array(name: str, group: Any, key: str, device: torch.device | None) -> Any:
    """Return group[key], an array, or a tensor if `device` is given."""
    group = {} if group is None else group
    if not isinstance(group, Mapping):
        raise ValueError(f"{name} must be given by name, in a mapping, not {type(group).__name__}")
    if key not in group:
        raise ValueError(f"{name} is missing (given: {', '.join(map(str, group)) or 'none'})")
    value = group[key]
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise ValueError(f"{name}: {type(value).__name__} given, but an array or tensor is needed")
    if device is not None and not isinstance(value, Tensor):
        raise ValueError(f"{name}: {type(value).__name__} given, but a tensor is needed")
    if device is not None and value.device != device:
        raise ValueError(f"{name}: on {value.device}, but the policy is on {device}; use .to()")
    return value


def _check_vector(name: str, value: Any, lead: Lead, width: int) -> None:
    """Check that an array is (*lead, width)."""
    if len(value.shape) == len(lead) + 1 and value.shape[-1] != width:
        raise ValueError(f"{name} has {value.shape[-1]} numbers, but the policy takes {width}")
    _check_shape(name, value, lead, [str(width)])


def _check_shape(name: str, value: Any, lead: Lead, rest: Sequence[str]) -> None:
    """Check the number of axes of an array, and the lengths of its leading axes."""
    shape = tuple(value.shape)
    fits = all(n in (None, given) for n, given in zip(lead.values(), shape, strict=False))
    if len(shape) != len(lead) + len(rest) or not fits:
        axes = [axis if n is None else str(n) for axis, n in lead.items()]
        raise ValueError(f"{name} has shape {shape}, but must have ({', '.join([*axes, *rest])})")


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Raise a ValueError that lists the choices unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"{option}={value!r} is unknown; choose one of {', '.join(choices)}")


def flatten_noise_samples(
    key: str, samples: Tensor | None, expected: tuple[int, int]
) -> Tensor | None:
    """Reshape samples (B, noise_samples_per_obs, ...) to (B * noise_samples_per_obs, ...).

    Args:
        key: batch key of the samples, for the error message.
        expected: (B, noise_samples_per_obs).

    Raises:
        ValueError: the first two axes are not `expected`.
    """
    if samples is None:
        return None
    if samples.shape[:2] != expected:
        raise ValueError(
            f"batch[{key!r}] has shape {tuple(samples.shape)}, but noise_samples_per_obs="
            f"{expected[1]} needs {expected} as its first two axes; provide these or omit {key!r}"
        )
    return samples.flatten(0, 1)


def check_actions(action_space: str, action_dim: int) -> None:
    """Raise a ValueError if the action space is unknown or its actions have another width."""
    check_choice("action_space", action_space, ACTION_SPACES)
    if action_space == "ee" and action_dim != EE_ACTION_DIM:
        raise ValueError(
            f"action_space='ee' with action_dim={action_dim}: an end-effector action has "
            f"{EE_ACTION_DIM} numbers (twice xyz, quaternion, gripper); set "
            "action_space='joint' or use data with end-effector actions"
        )


def check_camera_options(
    conditioning: str, camera_names: Sequence[str], aux_pose_objects: Sequence[str]
) -> None:
    """Raise a ValueError if an option needs cameras and there are none, or is unknown."""
    check_choice("conditioning", conditioning, CONDITIONING_MODES)
    if conditioning == "multi_token" and not camera_names:
        raise ValueError(
            "conditioning='multi_token' makes one token per camera, but camera_names is empty; "
            "set camera_names or conditioning='single_token'"
        )
    if aux_pose_objects and not camera_names:
        raise ValueError(
            "aux_pose_objects trains image encoders, but camera_names is empty; set "
            "camera_names or remove aux_pose_objects"
        )


def check_horizons(obs: int, pred: int, executed: int, inference_steps: int) -> None:
    """Raise a ValueError unless a chunk contains all actions that are executed."""
    options = {
        "obs_horizon": obs,
        "pred_horizon": pred,
        "num_action_steps": executed,
        "inference_steps": inference_steps,
    }
    for option, value in options.items():
        if value < 1:
            raise ValueError(f"{option}={value}: must be at least 1")
    available = pred - obs + 1
    if executed > available:
        raise ValueError(
            f"num_action_steps={executed} is too large: a chunk of pred_horizon={pred} actions "
            f"starts at the oldest of obs_horizon={obs} observations, so {available} of them are "
            f"not in the past; set num_action_steps <= {available} or pred_horizon >= "
            f"{executed + obs - 1}"
        )
