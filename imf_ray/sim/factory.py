"""Makes the envs and scripted experts of tasks, given environment ids.

Importing this module does not import MuJoCo.
"""

import pkgutil
from collections.abc import Mapping
from typing import Any, cast

import gymnasium
from gymnasium.wrappers import TimeLimit

from imf_ray.errors import UserError
from imf_ray.sim.base import ScriptedExpert, SimEnv
from imf_ray.sim.tasks import TASKS


def make_env(
    env_id: str,
    *,
    control_hz: int,
    max_episode_steps: int,
    adapter: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> gymnasium.Env[dict[str, Any], Any]:
    """Make the env `env_id` with a time limit. Its `unwrapped` is a `SimEnv`.

    Args:
        control_hz: the control rate that the caller expects.
        max_episode_steps: number of environment steps after which an episode is truncated.
        adapter: description of an env of another package (see `imf_ray.sim.gym_adapter`).
        kwargs: arguments of the env's constructor: `action_space`, `image_size`, `camera_names`,
            `shadows`, `multisampling`, `render_images`.

    Raises:
        UserError: the env cannot be made with these arguments, or has another control rate.
    """
    env: gymnasium.Env[dict[str, Any], Any]
    advice = "An environment of another package needs task.adapter (docs/environments.md)."
    try:
        if adapter is not None:
            from imf_ray.sim.gym_adapter import make_adapted_env

            advice = "Check task.adapter (docs/environments.md)."
            adapted = make_adapted_env(env_id, adapter, control_hz=control_hz, **kwargs)
            env = TimeLimit(adapted, max_episode_steps)
        else:
            env = gymnasium.make(
                env_id, max_episode_steps=max_episode_steps, disable_env_checker=True, **kwargs
            )
    except UserError:
        raise
    except Exception as error:  # the code of another package may raise anything
        reason = str(error).strip().rstrip(".?") or "no reason given"
        if isinstance(error, ValueError):  # it names the option
            advice = ""
        elif not isinstance(error, gymnasium.error.Error):
            reason = f"{type(error).__name__}: {reason}"
        raise UserError(
            f"task.env_id={env_id} cannot be made: {reason}. {advice}".rstrip()
        ) from error
    if not isinstance(env.unwrapped, SimEnv):
        raise UserError(f"task.env_id={env_id} has no cameras and stages. {advice}")
    env_hz = env.unwrapped.control_hz
    if env_hz != control_hz:
        raise UserError(
            f"task.env_id={env_id} runs at {env_hz} Hz, but task.control_hz={control_hz}. Set "
            f"task.control_hz={env_hz}."
        )
    return env


def check_images(
    env_id: str, env: gymnasium.Env[dict[str, Any], Any], cameras: bool, overview: bool
) -> None:
    """Render once what will be rendered, so that missing libraries are noticed in this process.

    Args:
        cameras: the images of the cameras will be rendered.
        overview: overview images will be rendered, for videos or trajectories.

    Raises:
        UserError: the env cannot be rendered.
    """
    if not (cameras or overview):
        return
    sim = cast(SimEnv, env.unwrapped)
    try:
        env.reset(seed=0)
        if cameras:
            sim.render_cameras()
        else:  # a renderer of one image can be made if the other can
            sim.render_overview()
    except UserError as error:
        if cameras:
            raise
        raise UserError(
            f"{error} Only videos and trajectories need images here: train.rollout_video, "
            "evaluate.video and evaluate.save_trajectories."
        ) from error
    except Exception as error:  # the code of another package may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"task.env_id={env_id} cannot be rendered: {reason}") from error


def make_expert(env_id: str, env: SimEnv) -> ScriptedExpert:
    """Make the scripted expert of the task `env_id` for its unwrapped env.

    Raises:
        UserError: the task has no expert.
    """
    check_has_expert(env_id)
    return pkgutil.resolve_name(TASKS[env_id].expert)(env)


def check_has_expert(env_id: str) -> None:
    """Raise a UserError if the task `env_id` has no scripted expert."""
    if env_id not in TASKS:
        raise UserError(
            f"task.env_id={env_id} has no scripted expert; these tasks have one: "
            f"{', '.join(TASKS)}."
        )
