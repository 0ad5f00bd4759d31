"""Checks that a policy can act in its environment, before Ray starts."""

from __future__ import annotations

import functools
import pickle
from dataclasses import dataclass
from typing import Any, cast

from imf_ray.errors import UserError
from imf_ray.rollout.rollout_config import RolloutConfig, make_rollout_env
from imf_ray.schema import Config
from imf_ray.sim.base import SimEnv
from imf_ray.sim.factory import check_images


@dataclass(frozen=True)
class PolicyNeeds:
    """Sizes and names that a policy needs its environment to have; the defaults need nothing."""

    action_dim: int | None = None
    action_source: str = "agent.action_dim"
    """Where `action_dim` comes from: an option or the path of recorded actions."""
    action_space: str | None = None
    """Meaning of the actions: `joint` or `ee`."""
    state_dim: int | None = None
    control_hz: int | None = None
    objects: tuple[str, ...] = ()
    """Objects whose true poses are inputs."""


def agent_needs(trained: Config) -> PolicyNeeds:
    """Return the needs of an agent that is trained with a configuration."""
    return PolicyNeeds(
        action_dim=trained.agent.action_dim,
        action_space=trained.task.action_space,
        state_dim=trained.agent.state_dim,
        objects=tuple(trained.agent.privileged_pose_objects),
    )


def check_agent_fits(config: Config, renders_here: bool, overview: bool) -> None:
    """Check that the agent of a configuration can act in the env of its task.

    Args:
        renders_here: rollouts run on this machine, so check that it can render.
        overview: see `check_rendering`.

    Raises:
        UserError: the env cannot be made, the agent cannot act in it, or this machine cannot
            render.
    """
    rollout = RolloutConfig(task=config.task, camera_names=tuple(config.agent.camera_names))
    _check_fits(pickle.dumps(rollout), agent_needs(config))
    if renders_here:
        check_rendering(rollout, overview)


def check_rendering(config: RolloutConfig, overview: bool) -> None:
    """Check that this machine can render what a rollout needs.

    Args:
        overview: the rollout also renders overview images, for videos or trajectories.

    Raises:
        UserError: this machine cannot render.
    """
    rollout = RolloutConfig(task=config.task, camera_names=config.camera_names)
    _check_rendering(pickle.dumps(rollout), overview)


# Cached, because the trials of a sweep and the checkpoints of a run mostly act in the same env.
@functools.lru_cache
def _check_fits(pickled_config: bytes, needs: PolicyNeeds) -> None:
    make_fitting_env(pickle.loads(pickled_config), needs).close()


@functools.lru_cache
def _check_rendering(pickled_config: bytes, overview: bool) -> None:
    config: RolloutConfig = pickle.loads(pickled_config)
    env = make_rollout_env(config)
    try:
        check_images(config.task.env_id, env, bool(config.camera_names), overview)
    finally:
        env.close()


def make_fitting_env(config: RolloutConfig, needs: PolicyNeeds) -> Any:
    """Make the env of a rollout and check that it has what the policy needs.

    Raises:
        UserError: the env cannot be made, or the policy cannot act in it.
    """
    env = make_rollout_env(config)
    sim = cast(SimEnv, env.unwrapped)
    problems = _size_problems(sim, needs)
    if needs.action_space not in (None, config.task.action_space):
        problems.append(
            f"its actions are in the space {needs.action_space}, but task.action_space="
            f"{config.task.action_space}"
        )
    if needs.control_hz not in (None, config.task.control_hz):
        problems.append(
            f"its actions were recorded at {needs.control_hz} Hz, but task.control_hz="
            f"{config.task.control_hz}"
        )
    if needs.objects:
        objects = list(env.reset(seed=config.noise_seed)[1]["poses"])
        missing = [name for name in needs.objects if name not in objects]
        if missing:
            problems.append(
                f"agent.privileged_pose_objects={list(needs.objects)}, but the environment has no "
                f"{', '.join(missing)}; its objects: {', '.join(objects) or 'none'}"
            )
    if problems:
        env.close()
        raise UserError(
            f"The policy cannot act in task.env_id={config.task.env_id}: {'; '.join(problems)}. "
            "Choose the environment that the policy is for with task=NAME (docs/environments.md)."
        )
    return env


def _size_problems(env: SimEnv, needs: PolicyNeeds) -> list[str]:
    """Return a line for each vector whose size differs."""
    problems = []
    (action_dim,) = env.action_space.shape or ()
    if needs.action_dim not in (None, action_dim):
        problems.append(
            f"{needs.action_source}={needs.action_dim}, but an action of the environment has "
            f"{action_dim} numbers"
        )
    state = env.observation_space["qpos"]  # type: ignore[index]
    (state_dim,) = state.shape
    if needs.state_dim not in (None, state_dim):
        problems.append(
            f"agent.state_dim={needs.state_dim}, but a state (qpos) of the environment has "
            f"{state_dim} numbers"
        )
    return problems
