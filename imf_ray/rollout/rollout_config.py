"""How episodes are executed: everything a record depends on besides the policy and the seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import imf_ray
from imf_ray.data.readers import AUTO
from imf_ray.errors import UserError
from imf_ray.schema import Config, EvaluateConfig, TaskConfig
from imf_ray.sim.base import SimEnv, make_env

THREADS = 1
"""Of each simulator's process, in torch and in the software renderer."""


@dataclass(frozen=True)
class RolloutConfig:
    """How episodes are executed; what only a policy with chunks reads means nothing to others."""

    task: TaskConfig
    camera_names: tuple[str, ...] = ()
    privileged_pose_objects: tuple[str, ...] = ()
    """Objects whose true poses the policy is told."""
    noise_seed: int = 0
    num_action_steps: int | None = None
    inference_steps: int | None = None
    """Calls of the network for a chunk (K); null is the checkpoint's."""
    use_ema_weights: bool = True
    """Judge the averaged weights where there are any."""
    inference_batch_size: int = 1
    """Rows of every call of the policy. Kernels, and so the last bits, depend on it."""
    device: str = "cpu"
    stop_on_success: bool = False
    episode_timeout_s: float = EvaluateConfig.episode_timeout_s
    """An episode whose own time exceeds this has failed."""
    data_format: str = AUTO
    """Of the episodes that a replay plays back."""


def agent_rollout_config(config: Config, noise_seed: int) -> RolloutConfig:
    """How the policy of a configuration is executed.

    Raises:
        UserError: its chunks have fewer actions than shall be executed.
    """
    evaluate, agent = config.evaluate, config.agent
    executed = evaluate.num_action_steps or agent.num_action_steps
    if executed > agent.executable_steps:
        raise UserError(
            f"evaluate.num_action_steps={executed}: of a chunk of this policy, "
            f"{agent.executable_steps} actions at most can be executed."
        )
    return RolloutConfig(
        task=config.task,
        camera_names=tuple(config.agent.camera_names),
        privileged_pose_objects=tuple(config.agent.privileged_pose_objects),
        noise_seed=noise_seed,
        num_action_steps=executed,
        inference_steps=evaluate.inference_steps or config.agent.inference_steps,
        use_ema_weights=evaluate.use_ema_weights,
        inference_batch_size=evaluate.inference_batch_size,
        device=evaluate.device,
        stop_on_success=evaluate.stop_on_success,
        episode_timeout_s=evaluate.episode_timeout_s,
    )


def scripted_rollout_config(
    task: TaskConfig,
    action_space: str = "joint",
    stop_on_success: bool = False,
    episode_timeout_s: float = EvaluateConfig.episode_timeout_s,
    data_format: str = AUTO,
) -> RolloutConfig:
    """How a policy that looks at nothing, such as the expert, is executed."""
    return RolloutConfig(
        task=replace(task, action_space=action_space),
        stop_on_success=stop_on_success,
        episode_timeout_s=episode_timeout_s,
        data_format=data_format,
    )


def recorded_settings(settings: RolloutConfig, world: SimEnv) -> Mapping[str, Any]:
    """The plain values that go into every record.

    The time limit changes no finished episode; how a replay's files are read shows in its name.
    """
    values = asdict(settings)
    del values["episode_timeout_s"], values["data_format"]
    return {
        **values,
        "camera_names": list(settings.camera_names),
        "privileged_pose_objects": list(settings.privileged_pose_objects),
        "success_description": world.success_description,
        "threads": THREADS,
        "version": imf_ray.__version__,
    }


def make_rollout_env(settings: RolloutConfig) -> Any:
    """The task's environment, which draws nothing unless asked."""
    kwargs = settings.task.env_kwargs(settings.camera_names) | {"render_images": False}
    return make_env(settings.task.env_id, **kwargs)
