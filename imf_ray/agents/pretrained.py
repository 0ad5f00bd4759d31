"""Agents on disk: weights in safetensors beside the configuration that they belong to.

    model.safetensors       the weights, normalization statistics included
    model_ema.safetensors   their moving average, where there is one
    config.yaml             the resolved configuration

Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import inspect
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import nn

from imf_ray.agents.base import VLAAgent
from imf_ray.agents.flow import FlowVLAAgent
from imf_ray.agents.imf import IMFVLAAgent
from imf_ray.config import config_from_dict, config_to_dict, to_yaml
from imf_ray.errors import UserError
from imf_ray.models.imf_transformer import IMFTransformer1D
from imf_ray.models.transformer1d import Transformer1D
from imf_ray.schema import AgentConfig, Config, HeadConfig

WEIGHTS_FILE, EMA_WEIGHTS_FILE, CONFIG_FILE = (
    "model.safetensors",
    "model_ema.safetensors",
    "config.yaml",
)
POLICY_FILES = ("*.safetensors", "*.yaml")
"""What of a checkpoint executes its policy."""
POLICY_SECTIONS = ("agent", "data", "task")
"""What of a configuration belongs to a policy; how its run was carried out does not."""
UNTRAINED_SEED = 0
Stats = Mapping[str, Mapping[str, Any]]


def make_agent(config: AgentConfig, action_space: str, stats: Stats | None = None) -> VLAAgent:
    """An agent: with `stats` (see `Normalizer`) a new one to train, pretrained weights and all;
    without, one whose weights are loaded from a checkpoint.

    Raises:
        UserError: an impossible combination of options.
    """
    vision = asdict(config.vision_backbone)
    del vision["camera_names"]
    agent_class, objective = _objective(config)
    head_class, head = _head(config.head)
    try:
        agent = agent_class(
            action_dim=config.action_dim,
            state_dim=config.state_dim,
            num_poses=len(config.privileged_pose_objects),
            num_target_poses=len(config.aux_pose_objects),
            aux_pose_loss_weight=config.aux_pose_loss_weight,
            camera_names=config.camera_names,
            obs_horizon=config.obs_horizon,
            pred_horizon=config.pred_horizon,
            num_action_steps=config.num_action_steps,
            inference_steps=config.inference_steps,
            noise_samples_per_obs=config.noise_samples_per_obs,
            vision_encoder=vision,
            head=head,
            head_factory=head_class,
            conditioning=config.conditioning,
            normalization_type=config.normalization_type,
            action_space=action_space,
            stats=stats,
            **objective,
        )
    except ValueError as error:
        raise UserError(f"agent={config.name} cannot be built: {error}") from error
    if stats is not None and agent.vision_encoder is not None:
        agent.vision_encoder.load_pretrained()
    return agent


def _objective(config: AgentConfig) -> tuple[type[VLAAgent], dict[str, Any]]:
    """The class of `agent.objective`, and the options that are its own."""
    if config.objective == "ddpm":
        from imf_ray.agents.ddpm import DDPMVLAAgent  # diffusers takes 0.4 s that others need not

        return DDPMVLAAgent, {"loss_type": config.loss_type, **asdict(config.ddpm)}
    options = ("loss_type", "prediction_type", "time_sampler", "aux_v_head")
    agent_class = {"imf": IMFVLAAgent, "flow": FlowVLAAgent}[config.objective]
    return agent_class, {name: getattr(config, name) for name in options}


def _head(config: HeadConfig) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class of `agent.head.backbone_type`, and the options that it has."""
    options = asdict(config)
    if config.backbone_type != "transformer":
        return IMFTransformer1D, options
    known = inspect.signature(Transformer1D).parameters
    return Transformer1D, {name: value for name, value in options.items() if name in known}


def save_agent(
    folder: Path, agent: VLAAgent, config: Config, ema: Mapping[str, torch.Tensor] | None
) -> None:
    """Write the agent's files into an existing folder."""
    save_file(agent.state_dict(), folder / WEIGHTS_FILE)
    if ema is not None:
        save_file(dict(ema), folder / EMA_WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(to_yaml(config))


def save_inference_policy(folder: Path, checkpoint: Path) -> None:
    """Write into an existing folder what executes a checkpoint's policy: the weights that are
    judged, and its settings without the place of its data.

    Raises:
        UserError: it is not a checkpoint.
    """
    settings = config_to_dict(load_policy_config(checkpoint))
    del settings["data"]["dataset_dir"]
    shutil.copyfile(weights_path(checkpoint, ema=True), folder / WEIGHTS_FILE)
    policy = {section: settings[section] for section in POLICY_SECTIONS}
    (folder / CONFIG_FILE).write_text(OmegaConf.to_yaml(OmegaConf.create(policy)))


def load_policy_config(folder: Path) -> Config:
    """The agent, the data and the task that a checkpoint was trained with; the rest is default.

    Raises:
        UserError: the folder is not a checkpoint.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{folder} is not a checkpoint: it has no {CONFIG_FILE}.")
    stored = OmegaConf.to_container(OmegaConf.load(path))
    return config_from_dict({key: stored[key] for key in POLICY_SECTIONS})  # type: ignore[index,call-overload]


def load_agent(folder: Path, ema: bool = True, device: str = "cpu") -> tuple[VLAAgent, Config]:
    """The agent of a checkpoint, in evaluation mode, and its configuration.

    Args:
        ema: take the averaged weights where there are any.

    Raises:
        UserError: the folder is not a checkpoint, or its weights do not fit its configuration.
    """
    config = load_policy_config(folder)
    agent = make_agent(config.agent, config.task.action_space)
    try:
        agent.load_state_dict(load_file(weights_path(folder, ema)))
    except (OSError, RuntimeError) as error:
        raise UserError(f"The weights of {folder} cannot be loaded: {error}") from error
    return agent.to(device).eval(), config


def make_untrained_agent(folder: Path, device: str = "cpu") -> tuple[VLAAgent, Config]:
    """The agent of a checkpoint with fresh weights, always the same, and its normalization.

    Raises:
        UserError: as `load_agent`.
    """
    trained, config = load_agent(folder, ema=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(UNTRAINED_SEED)
        agent = make_agent(config.agent, config.task.action_space)
    for name in ("qpos_normalizer", "action_normalizer"):
        getattr(agent, name).load_state_dict(getattr(trained, name).state_dict())
    return agent.to(device).eval(), config


def weights_path(folder: Path, ema: bool) -> Path:
    """The weights file that is judged."""
    averaged = folder / EMA_WEIGHTS_FILE
    return averaged if ema and averaged.is_file() else folder / WEIGHTS_FILE


def weights_digest(folder: Path, ema: bool) -> str:
    """A short digest of the weights that are judged."""
    return hashlib.sha256(weights_path(folder, ema).read_bytes()).hexdigest()[:16]
