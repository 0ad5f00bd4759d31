"""Makes the envs and scripted experts of tasks, given environment ids."""

import pkgutil
from collections.abc import Mapping
from typing import Any, cast

import gymnasium
from gymnasium.wrappers import TimeLimit

from imf_ray.sim.base import ScriptedExpert, SimEnv
from imf_ray.sim.gym_adapter import make_adapted_env
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
        ValueError: the env cannot be made with these arguments, or has another control rate.
    """
    env: gymnasium.Env[dict[str, Any], Any]
    if adapter is not None:
        adapted = make_adapted_env(env_id, adapter, control_hz=control_hz, **kwargs)
        env = TimeLimit(adapted, max_episode_steps)
    else:
        try:
            env = gymnasium.make(
                env_id, max_episode_steps=max_episode_steps, disable_env_checker=True, **kwargs
            )
        except (gymnasium.error.UnregisteredEnv, TypeError) as error:
            raise ValueError(
                f"task.env_id={env_id} cannot be made: {str(error).rstrip('.')}. An environment "
                "of another package needs task.adapter (docs/environments.md)"
            ) from error
    env_hz = cast(SimEnv, env.unwrapped).control_hz
    if env_hz != control_hz:
        raise ValueError(
            f"{env_id} runs at {env_hz} Hz, but task.control_hz={control_hz}: set "
            f"task.control_hz={env_hz}"
        )
    return env


def make_expert(env_id: str, env: SimEnv) -> ScriptedExpert:
    """Make the scripted expert of the task `env_id` for its unwrapped env.

    Raises:
        ValueError: the task has no expert.
    """
    if env_id not in TASKS:
        raise ValueError(
            f"{env_id} has no scripted expert; these environments have one: {', '.join(TASKS)}"
        )
    return pkgutil.resolve_name(TASKS[env_id].expert)(env)
