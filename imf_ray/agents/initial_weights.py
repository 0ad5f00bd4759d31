"""The weights that a new agent starts with: those of another policy, or pretrained encoders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from imf_ray.agents.backbone_weights import read_backbone_weights
from imf_ray.agents.pretrained import (
    POLICY_FILES,
    load_policy_config,
    load_weights,
    make_meta_agent,
    weights_digest,
    weights_path,
)
from imf_ray.bundled import policy_dir
from imf_ray.checkpoint_dir import MANIFEST_FILE
from imf_ray.errors import UserError, abridge
from imf_ray.folders import require_checkpoint
from imf_ray.schema import Config
from imf_ray.storage import download

ENCODERS_PREFIX = "vision_encoder."
"""Start of the names of the image encoders' tensors."""
ENCODERS = "encoders"
"""Value of `train.init_parts` that takes only the image encoders."""
MAX_LISTED = 6
"""Maximum number of tensors or modules in a message."""
_NAME_DEPTH = 2  # of a module in a message, such as head.cond_obs_emb


@dataclass(frozen=True)
class InitialWeights:
    """Some of the tensors of a new agent, by their name in its state dict."""

    tensors: Mapping[str, Tensor]
    source: str
    """The policy's path, or the name of pretrained weights."""
    digest: str | None = None
    """`weights_digest` of the policy; None for pretrained weights."""
    untrained: tuple[str, ...] = ()
    """Names of the agent's other tensors, which start untrained."""
    unused: tuple[str, ...] = ()
    """Names of the policy's other tensors, which the agent does not take."""

    def describe(self) -> str:
        """Return one line that says which modules take over their tensors and which do not."""
        parts = [f"{len(self.tensors)} tensors of {self.source} in {_modules(self.tensors)}"]
        if self.untrained:
            parts.append(f"untrained: {_modules(self.untrained)}")
        if self.unused:
            parts.append(f"not taken: {_modules(self.unused)}")
        return f"Initial weights: {'; '.join(parts)}"


def read_initial_weights(config: Config) -> InitialWeights | None:
    """Read the weights with which a new run starts; None if all of them start untrained.

    `train.init_from` replaces pretrained weights. Normalization statistics are never taken over,
    because they belong to the run's own data.

    Raises:
        UserError: `train.init_from` is not a checkpoint, or its weights do not fit the agent; or
            pretrained weights are not in PyTorch's cache folder and cannot be downloaded.
    """
    if config.train.init_from is not None:
        return _read_policy(config, config.train.init_from, config.train.init_parts)
    return _read_pretrained(config)


def policy_digest(path: str) -> str:
    """Return the digest of the weights that `train.init_from=path` gives.

    Raises:
        UserError: the path is not a checkpoint.
    """
    folder = policy_dir(path)
    require_checkpoint(folder, prefix="train.init_from=")
    download(folder, *POLICY_FILES, MANIFEST_FILE)
    return weights_digest(folder, ema=True)


def _read_policy(config: Config, path: str, parts: str) -> InitialWeights:
    """Read the weights of a policy that the agent takes over.

    Raises:
        UserError: see `read_initial_weights`.
    """
    digest, folder = policy_digest(path), policy_dir(path)
    agent = make_meta_agent(config.agent, config.task.action_space)
    own = _tensors_without_statistics(agent.state_dict())
    source = _tensors_without_statistics(load_weights(weights_path(folder, ema=True)))
    prefix = ENCODERS_PREFIX if parts == ENCODERS else ""
    taken = {name: t for name, t in source.items() if name in own and name.startswith(prefix)}
    option = f"train.init_from={path}"
    if not taken:
        theirs = load_policy_config(folder).agent.camera_names
        raise UserError(
            f"{option} has no {'image encoder' if prefix else 'tensor'} that this agent can start "
            f"with. The policy's cameras are {', '.join(theirs) or 'none'}; agent.camera_names are "
            f"{', '.join(config.agent.camera_names) or 'none'}."
        )
    misfits = [
        f"{name} has the shape {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in taken.items()
        if value.shape != own[name].shape
    ]
    if misfits:
        raise UserError(
            f"{option} does not fit this agent: {abridge(misfits, MAX_LISTED)}. Give the "
            f"agent the options of {folder / 'config.yaml'}"
            + ("." if prefix else ", or set train.init_parts=encoders.")
        )
    return InitialWeights(
        taken,
        path,
        digest,
        untrained=tuple(name for name in own if name not in taken),
        unused=tuple(name for name in source if name not in taken),
    )


def _read_pretrained(config: Config) -> InitialWeights | None:
    """Read torchvision's weights for the trunk of every image encoder.

    Raises:
        UserError: see `read_initial_weights`.
    """
    name = config.agent.vision_backbone.pretrained_backbone_weights
    if name is None or not config.agent.camera_names:
        return None
    try:
        trunk = read_backbone_weights(name)
    except OSError as error:
        raise UserError(f"agent.vision_backbone.{error}") from error
    encoders = make_meta_agent(config.agent, config.task.action_space).vision_encoder
    assert encoders is not None  # there are cameras
    prefixes = [f"{ENCODERS_PREFIX}encoders.{camera}.trunk." for camera in encoders.encoders]
    return InitialWeights(
        {prefix + key: tensor for prefix in prefixes for key, tensor in trunk.items()}, name
    )


def _tensors_without_statistics(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a state dict that are not buffers of a normalizer."""
    return {
        name: tensor
        for name, tensor in state.items()
        if not any(module.endswith("normalizer") for module in name.split(".")[:-1])
    }


def _modules(names: Iterable[str]) -> str:
    """Name the modules of some tensors, in their order."""
    modules = dict.fromkeys(".".join(name.split(".")[:_NAME_DEPTH]) for name in names)
    return abridge(list(modules), MAX_LISTED)
