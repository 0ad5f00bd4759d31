"""Agents on disk: a folder with weights in safetensors format and their configuration.

    model.safetensors       the weights, including the normalization statistics
    model_ema.safetensors   their exponential moving average (EMA), if training computed it
    config.yaml             the resolved configuration

Loading unpickles nothing.
"""

from __future__ import annotations

import hashlib
import inspect
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from imf_ray.agents.base import VLAAgent
from imf_ray.agents.registry import OBJECTIVES
from imf_ray.aliases import STATE_DICT_PREFIXES
from imf_ray.bundled import policy_dir
from imf_ray.checkpoint_dir import CONFIG_FILE, EMA_WEIGHTS_FILE, WEIGHTS_FILE
from imf_ray.config import config_from_dict, config_to_dict, to_yaml
from imf_ray.errors import UserError, error_source
from imf_ray.folders import checkpoint_error
from imf_ray.models.imf_transformer import IMFTransformer1D
from imf_ray.models.transformer1d import Transformer1D
from imf_ray.schema import AgentConfig, Config, HeadConfig
from imf_ray.storage import download, is_remote
from imf_ray.yaml_text import dump_yaml, read_yaml

POLICY_FILES = ("*.safetensors", "*.yaml")
"""Patterns of the files of a checkpoint that are needed to run its policy."""
POLICY_SECTIONS = ("agent", "data", "task")
"""Sections of a configuration that describe a policy. The others describe its training run."""
TRAIN_SECTION = "train"
"""Section of a checkpoint's configuration that `save_inference_policy` leaves out."""
UNTRAINED_SEED = 0
"""Seed of the weights of `make_untrained_agent`."""
Stats = Mapping[str, Mapping[str, Any]]


def make_agent(
    config: AgentConfig,
    action_space: str,
    stats: Stats | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> VLAAgent:
    """Build an agent.

    Args:
        stats: normalization statistics of a new agent, see `VLAAgent`. None builds an agent whose
            weights are loaded later.
        weights: tensors with which a new agent starts, see `agents/initial_weights.py`. They may be
            a part of its state dict.

    Raises:
        UserError: an impossible combination of options.
    """
    objective = OBJECTIVES[config.objective]
    options = {name: getattr(config, name) for name in objective.options}
    if objective.section is not None:
        options |= asdict(getattr(config, objective.section))
    vision = asdict(config.vision_backbone)
    del vision["camera_names"]
    head_class, head = _head(config.head)
    try:
        agent: VLAAgent = objective.load()(
            action_dim=config.action_dim,
            state_dim=config.state_dim,
            privileged_pose_objects=config.privileged_pose_objects,
            aux_pose_objects=config.aux_pose_objects,
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
            **options,
        )
    except ValueError as error:
        raise UserError(f"agent={config.name} cannot be built: {error}") from error
    if weights is not None:
        agent.load_state_dict(weights, strict=False)
    return agent


def make_meta_agent(config: AgentConfig, action_space: str) -> VLAAgent:
    """Build an agent without allocating or initializing its weights, which are meta tensors.

    Raises:
        UserError: an impossible combination of options.
    """
    with torch.device("meta"):
        return make_agent(config, action_space)


def _head(config: HeadConfig) -> tuple[type[nn.Module], dict[str, Any]]:
    """Return the class of `agent.head.backbone_type` and its options."""
    options = asdict(config)
    if config.backbone_type != "transformer":
        return IMFTransformer1D, options
    accepted = inspect.signature(Transformer1D).parameters
    return Transformer1D, {name: value for name, value in options.items() if name in accepted}


def save_agent(
    folder: str | Path, agent: VLAAgent, config: Config, ema: Mapping[str, torch.Tensor] | None
) -> None:
    """Write an agent's files into an existing folder, with its EMA weights if given."""
    folder = Path(folder)
    save_file(agent.state_dict(), folder / WEIGHTS_FILE)
    if ema is not None:
        save_file(dict(ema), folder / EMA_WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(to_yaml(config), encoding="utf-8")


def save_inference_policy(folder: Path, checkpoint: Path) -> None:
    """Write the files needed to run a checkpoint's policy into an existing folder.

    These are the weights used in evaluation (EMA if present) and the policy's configuration without
    the path of its data.

    Raises:
        UserError: `checkpoint` is not a checkpoint folder.
    """
    settings = config_to_dict(load_policy_config(checkpoint))
    del settings["data"]["dataset_dir"]
    shutil.copyfile(weights_path(checkpoint, ema=True), folder / WEIGHTS_FILE)
    policy = {section: settings[section] for section in POLICY_SECTIONS}
    (folder / CONFIG_FILE).write_text(dump_yaml(policy), encoding="utf-8")


def load_policy_config(folder: str | Path) -> Config:
    """Load the agent, data and task sections of a checkpoint's configuration.

    The other sections have default values.

    Raises:
        UserError: the folder is not a checkpoint.
    """
    folder = Path(folder)
    stored = _read_config_file(folder)
    with error_source(str(folder / CONFIG_FILE)):
        return config_from_dict({key: stored[key] for key in POLICY_SECTIONS})


def _read_config_file(folder: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's configuration file.

    Raises:
        UserError: the folder is not a checkpoint, or the file is damaged.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise checkpoint_error(folder)
    stored = read_yaml(path)
    missing = [key for key in POLICY_SECTIONS if key not in stored]
    if missing:
        raise UserError(
            f"{folder} is not a checkpoint: its {CONFIG_FILE} lacks {', '.join(missing)}."
        )
    return stored


def load_agent(
    folder: str | Path, ema: bool = True, device: str | torch.device = "cpu"
) -> tuple[VLAAgent, Config]:
    """Load the agent of a checkpoint, in evaluation mode, and its configuration.

    The agent refuses images of another size than in training; see `VLAAgent.image_size`.

    Args:
        folder: local path, released policy, or a URL, whose files are downloaded. `~` is the home
            folder.
        ema: load the EMA weights if the checkpoint has them.

    Raises:
        UserError: the folder is not a checkpoint, its weights do not fit its configuration, or
            the device does not exist.
    """
    _check_device(device)
    path, folder = folder, policy_dir(folder)
    if is_remote(path):
        download(folder, *POLICY_FILES)
    config = load_policy_config(folder)
    weights = weights_path(folder, ema)
    if not weights.is_file():
        raise checkpoint_error(folder)
    with default_tensors():
        agent = make_agent(config.agent, config.task.action_space)
    agent.image_size = config.task.image_size
    try:
        agent.load_state_dict(load_weights(weights))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"The weights of {folder} cannot be loaded: {error}") from error
    return agent.to(device).eval(), config


def _check_device(device: str | torch.device) -> None:
    """Check that tensors can be stored on a device.

    Raises:
        UserError: torch does not know the device, or the machine does not have it.
    """
    try:
        torch.zeros(1, device=device).item()
        if torch.device(device).type == "cpu" and torch.device(device).index:
            raise ValueError("the CPU is one device, without a number")  # torch ignores it
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        raise UserError(
            f"device={str(device)!r} cannot be used: {reason}. Use device='cpu', or a device that "
            f"torch finds here ({torch.cuda.device_count()} CUDA devices)."
        ) from error


@contextmanager
def default_tensors() -> Iterator[None]:
    """Make new tensors float32 and on the CPU inside the `with` block, as torch does by default.

    The caller may have set another default device or type for its own tensors.
    """
    dtype, device = torch.get_default_dtype(), torch.device("cpu")
    torch.set_default_dtype(torch.float32)
    try:
        # Entering a device makes every operation of torch slower.
        with nullcontext() if torch.get_default_device() == device else device:
            yield
    finally:
        torch.set_default_dtype(dtype)


def make_untrained_agent(
    folder: str | Path, device: str | torch.device = "cpu"
) -> tuple[VLAAgent, Config]:
    """Make an agent with a checkpoint's configuration and normalization, but untrained weights.

    The weights are the same in each call.

    Raises:
        UserError: as `load_agent`.
    """
    trained, config = load_agent(folder)
    with torch.random.fork_rng(devices=[]), default_tensors():
        torch.manual_seed(UNTRAINED_SEED)
        agent = make_agent(config.agent, config.task.action_space)
    for name in ("qpos_normalizer", "action_normalizer"):
        getattr(agent, name).load_state_dict(getattr(trained, name).state_dict())
    return agent.to(device).eval(), config


def weights_path(folder: str | Path, ema: bool) -> Path:
    """Return the path of the EMA weights if `ema` is set and they exist, else of the others.

    Raises:
        UserError: `ema` is false, but the folder is an exported policy, which has only one set of
            weights.
    """
    folder = Path(folder)
    if not ema and TRAIN_SECTION not in _read_config_file(folder):
        raise UserError(
            f"{folder} is an exported policy. It has only the weights used in evaluation, which "
            "are the EMA weights if training computed them. Use ema=True "
            "(evaluate.use_ema_weights=true), or a checkpoint of the training run."
        )
    ema_weights = folder / EMA_WEIGHTS_FILE
    return ema_weights if ema and ema_weights.is_file() else folder / WEIGHTS_FILE


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a weights file. Parameter names of earlier versions are translated to current ones."""
    weights = load_file(path)
    for old, new in STATE_DICT_PREFIXES.items():
        weights = {
            new + name.removeprefix(old) if name.startswith(old) else name: tensor
            for name, tensor in weights.items()
        }
    return weights


def weights_digest(folder: str | Path, ema: bool) -> str:
    """Return a short hash of the weights that `weights_path` selects."""
    return hashlib.sha256(weights_path(folder, ema).read_bytes()).hexdigest()[:16]
