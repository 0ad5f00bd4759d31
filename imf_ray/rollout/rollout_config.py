"""Execution settings of episodes.

The result of an episode depends only on its policy, these settings and its seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import imf_ray
from imf_ray.agents.pretrained import make_meta_agent
from imf_ray.data.channel_order import AUTO
from imf_ray.errors import UserError
from imf_ray.schema import Config, EvaluateConfig, TaskConfig
from imf_ray.sim.base import SimEnv
from imf_ray.sim.factory import make_env

THREADS = 1
"""Number of threads of a rollout actor, in torch and in the software renderer."""


@dataclass(frozen=True)
class RolloutConfig:
    """Execution settings of episodes.

    The settings of action chunks have no effect on a policy without chunks, such as the expert.
    """

    task: TaskConfig
    camera_names: tuple[str, ...] = ()
    """Cameras that are rendered."""
    privileged_pose_objects: tuple[str, ...] = ()
    """Objects whose true poses are part of the policy's observation."""
    noise_seed: int = 0
    """Seed of the noise from which the agent generates its chunks."""
    num_action_steps: int | None = None
    """Number of actions of a chunk that are executed; required for an agent."""
    inference_steps: int | None = None
    """Number of network calls per chunk (K); None uses the checkpoint's."""
    use_ema_weights: bool = True
    """Use the averaged (EMA) weights if the checkpoint has them."""
    inference_batch_size: int = 1
    """Batch size of every call of the policy. Kernels differ between batch sizes, so changing it
    changes actions by rounding errors."""
    device: str = "cpu"
    stop_on_success: bool = False
    episode_timeout_s: float = EvaluateConfig.episode_timeout_s
    """Maximum computing time of an episode in seconds; after that it fails."""
    data_format: str = AUTO
    """Format of the episodes that a replay reads."""


def agent_rollout_config(
    config: Config, noise_seed: int, camera_names: Sequence[str] | None = None
) -> RolloutConfig:
    """Make the rollout config of an agent from its configuration.

    Args:
        camera_names: cameras to render; None renders the agent's cameras.

    Raises:
        UserError: the agent's chunks have fewer actions than `evaluate.num_action_steps`, its
            objective does not support `evaluate.inference_steps`, or a camera is not rendered.
    """
    evaluate, agent = config.evaluate, config.agent
    num_action_steps = evaluate.num_action_steps or agent.num_action_steps
    if num_action_steps > agent.executable_steps:
        raise UserError(
            f"evaluate.num_action_steps={num_action_steps}: a chunk of this policy has only "
            f"{agent.executable_steps} actions that can be executed. Choose a smaller number."
        )
    if evaluate.inference_steps is not None:
        changed = replace(agent, inference_steps=evaluate.inference_steps)
        make_meta_agent(changed, config.task.action_space)
    rendered = agent.camera_names if camera_names is None else camera_names
    missing = [camera for camera in agent.camera_names if camera not in rendered]
    if missing:
        raise UserError(
            f"The policy needs the cameras {list(agent.camera_names)}, but only {list(rendered)} "
            f"are rendered. To fix this, add {missing} to data.camera_names."
        )
    return RolloutConfig(
        task=config.task,
        camera_names=tuple(rendered),
        privileged_pose_objects=tuple(agent.privileged_pose_objects),
        noise_seed=noise_seed,
        num_action_steps=num_action_steps,
        inference_steps=evaluate.inference_steps or agent.inference_steps,
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
    """Make the rollout config of a policy that ignores observations: the expert or a replay."""
    return RolloutConfig(
        task=replace(task, action_space=action_space),
        stop_on_success=stop_on_success,
        episode_timeout_s=episode_timeout_s,
        data_format=data_format,
    )


def recorded_settings(config: RolloutConfig, env: SimEnv) -> Mapping[str, Any]:
    """Return the settings that every record stores, as JSON values.

    The time limit is left out, because it does not change an episode that finishes. The data format
    of a replay is left out, because the policy's identifier already depends on the actions read.
    """
    values = asdict(config)
    del values["episode_timeout_s"], values["data_format"]
    return {
        **values,
        "camera_names": list(config.camera_names),
        "privileged_pose_objects": list(config.privileged_pose_objects),
        "success_description": env.success_description,
        "threads": THREADS,
        "version": imf_ray.__version__,
    }


def make_rollout_env(config: RolloutConfig) -> Any:
    """Make the task's env. Its observations have no images; `render_cameras` renders them."""
    if not config.task.has_simulator:
        raise UserError(
            "The policy has no simulator (task=none), so it cannot be rolled out. The report of "
            "its run has its action error. For a simulator, choose task=NAME."
        )
    kwargs = config.task.env_kwargs(config.camera_names) | {"render_images": False}
    return make_env(config.task.env_id, **kwargs)
