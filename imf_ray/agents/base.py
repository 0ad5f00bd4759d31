"""The base class of every agent: encoding of observations, normalization, condition, queues."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from imf_ray.agents.action_queue import ActionQueue
from imf_ray.agents.checks import (
    check_actions,
    check_batch,
    check_camera_options,
    check_horizons,
    check_observation,
    check_windows,
    flatten_noise_samples,
)
from imf_ray.agents.pose_head import PoseHead
from imf_ray.models.imf_transformer import IMFTransformer1D
from imf_ray.models.normalization import (
    EE_QUATERNION_SLICES,
    POSE_DIM,
    ImageNormalizer,
    Normalizer,
    join_pose_stats,
    join_poses,
    pose_quaternion_slices,
    split_pose_stats,
)
from imf_ray.models.vision import MultiViewResNetEncoder


class ObjectiveInputs(NamedTuple):
    """The arguments of `VLAAgent.objective_loss`.

    N = B * noise_samples_per_obs. The noise samples of an observation are consecutive rows.
    """

    actions: Tensor
    """(N, pred_horizon, action_dim), normalized."""
    cond: Tensor
    """(N, condition_sequence_length, cond_dim)."""
    noise: Tensor
    """(N, pred_horizon, action_dim), standard normal."""
    uniforms: Tensor
    """(N, 3), uniform in (0, 1). The objective computes its training times from them."""
    is_pad: Tensor
    """(N, pred_horizon) bool."""
    valid_count: Tensor | None
    """Scalar, see `VLAAgent.forward`."""


class VLAAgent(nn.Module, ABC):
    """A policy from camera images and joint state to action chunks, without its objective.

    DDP wraps the agent. Its `forward` returns the loss, so that DDP averages the gradients over
    ranks. A subclass supplies the objective: `objective_loss` and `_sample_actions`.

    A batch is a dict with these keys. Other keys and cameras are ignored.

    * "images": {camera: (B, obs_horizon, H, W, 3) uint8}.
    * "qpos": (B, obs_horizon, state_dim).
    * "object_poses": {name: (B, obs_horizon, 7)}, xyz (m) and quaternion wxyz, of the privileged
      and auxiliary objects. Optional if there are no such objects.
    * "action": (B, pred_horizon, action_dim) in real units.
    * "action_is_pad": (B, pred_horizon) bool, True for actions outside the episode. They do not
      count in the loss. They repeat its first or last action, because the head reads them.

    An observation has the first three keys and needs only the poses of privileged objects.

    The condition is the head's input in addition to noisy actions and times, a token sequence:

    * "single_token": one token per observation step. It concatenates all camera features and the
      state.
    * "multi_token": one token per observation step and camera. The camera's features and the state
      are projected to the head's width.

    Args:
        action_dim, state_dim: widths of an action and of qpos.
        privileged_pose_objects: objects whose poses follow qpos in the state.
        aux_pose_objects: objects whose poses a `PoseHead` learns to predict in training.
        aux_pose_loss_weight: weight of the pose head's loss in the sum with the objective's loss.
        camera_names: cameras of the policy, in this order; empty for a policy without images.
        obs_horizon, pred_horizon, num_action_steps: observations per window, actions per chunk, and
            actions executed before the next chunk is predicted.
        inference_steps: network calls per chunk.
        noise_samples_per_obs: independent noise and time samples per observation at which the
            objective is evaluated. The images of an observation are encoded only once.
        vision_encoder: arguments of `MultiViewResNetEncoder` other than the cameras.
        head: arguments of the head other than its widths and lengths, which the agent computes.
        head_factory: function or class that builds the head from `IMFTransformer1D`'s arguments.
        conditioning: one of `checks.CONDITIONING_MODES`.
        normalization_type: one of `normalization.NORMALIZATION_TYPES`, for states and actions.
        action_space: one of `checks.ACTION_SPACES`. "joint": joint targets (rad) and grippers.
            "ee": twice xyz (m), quaternion wxyz, gripper. The state contains qpos in both.
        stats: {"qpos": ..., "action": ..., "object_poses": {name: ...}}, each in the form of
            `Normalizer`'s `stats`. None if a state dict is loaded later.

    Attributes:
        image_size: height and width of images that `predict_action` and `select_action` accept,
            set by `load_agent`; None accepts any size.

    Raises:
        ValueError: an impossible combination of options.
    """

    def __init__(
        self,
        *,
        action_dim: int,
        state_dim: int,
        privileged_pose_objects: Sequence[str] = (),
        aux_pose_objects: Sequence[str] = (),
        aux_pose_loss_weight: float = 1.0,
        camera_names: Sequence[str],
        obs_horizon: int = 2,
        pred_horizon: int = 16,
        num_action_steps: int = 8,
        inference_steps: int = 1,
        noise_samples_per_obs: int = 1,
        vision_encoder: Mapping[str, Any] | None = None,
        head: Mapping[str, Any] | None = None,
        head_factory: Callable[..., nn.Module] = IMFTransformer1D,
        conditioning: str = "single_token",
        normalization_type: str = "min_max",
        action_space: str = "joint",
        stats: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        check_horizons(obs_horizon, pred_horizon, num_action_steps, inference_steps)
        if noise_samples_per_obs < 1:
            raise ValueError(f"noise_samples_per_obs={noise_samples_per_obs}: must be at least 1")
        check_actions(action_space, action_dim)
        check_camera_options(conditioning, camera_names, aux_pose_objects)
        self.action_dim = action_dim
        self.state_dim = state_dim
        self.privileged_pose_objects = tuple(privileged_pose_objects)
        self.aux_pose_objects = tuple(aux_pose_objects)
        self.aux_pose_loss_weight = aux_pose_loss_weight
        self.camera_names = tuple(camera_names)
        self.obs_horizon = obs_horizon
        self.pred_horizon = pred_horizon
        self.num_action_steps = num_action_steps
        self.inference_steps = inference_steps
        self.noise_samples_per_obs = noise_samples_per_obs
        self.conditioning = conditioning
        self.bf16_encoders = False  # set by training, not saved
        self.image_size: int | None = None

        num_privileged = len(self.privileged_pose_objects)
        full_state_dim = state_dim + num_privileged * POSE_DIM
        state_stats = action_stats = pose_stats = None
        if stats is not None:
            state_stats = join_pose_stats(stats, self.privileged_pose_objects, first="qpos")
            action_stats = stats["action"]
            pose_stats = join_pose_stats(stats, self.aux_pose_objects) if aux_pose_objects else None
        state_quaternions = pose_quaternion_slices(num_privileged, start=state_dim)
        self.qpos_normalizer = Normalizer(
            full_state_dim, normalization_type, state_stats, state_quaternions
        )
        action_quaternions = EE_QUATERNION_SLICES if action_space == "ee" else ()
        self.action_normalizer = Normalizer(
            action_dim, normalization_type, action_stats, action_quaternions
        )
        self.image_normalizer = ImageNormalizer()
        self.vision_encoder = (
            MultiViewResNetEncoder(self.camera_names, **(vision_encoder or {}))
            if self.camera_names
            else None
        )
        features = self.vision_encoder.out_dim if self.vision_encoder is not None else 0

        head = dict(head or {})
        if conditioning == "single_token":
            self.projector: nn.Module = nn.Identity()
            cond_dim = len(self.camera_names) * features + full_state_dim
        else:
            if "n_emb" not in head:
                raise ValueError(
                    "conditioning='multi_token' projects tokens to the head's width; set head.n_emb"
                )
            cond_dim = head["n_emb"]
            self.projector = nn.Linear(features + full_state_dim, cond_dim)
        self.head = head_factory(
            input_dim=action_dim,
            output_dim=action_dim,
            horizon=pred_horizon,
            n_obs_steps=self.condition_sequence_length,
            cond_dim=cond_dim,
            **head,
        )
        self.pose_head = None
        if self.aux_pose_objects:
            self.pose_head = PoseHead(
                self.condition_tokens_per_step * cond_dim,
                len(self.aux_pose_objects),
                normalization_type,
                pose_stats,
            )
        self._queue = ActionQueue(obs_horizon, num_action_steps, time_axis=1)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.qpos_normalizer.mean.device

    @property
    def condition_tokens_per_step(self) -> int:
        """Condition tokens per observation step: 1, or one per camera."""
        return 1 if self.conditioning == "single_token" else len(self.camera_names)

    @property
    def condition_sequence_length(self) -> int:
        """Length of the head's condition sequence in tokens."""
        return self.obs_horizon * self.condition_tokens_per_step

    @property
    def needs_images(self) -> bool:
        """True if the next observation passed to `select_action` needs images."""
        return self.vision_encoder is not None and self._queue.needs_images

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Compute the scalar training loss of a batch.

        With the following optional keys the loss depends only on the batch. It then does not depend
        on torch's random state or on how the global batch is split over ranks:

        * "valid_count": scalar tensor, the valid actions of the global batch divided by the number
          of ranks. It replaces the batch's own count in the denominator. Gradients averaged over
          ranks then equal the gradients of one process.
        * "crop_offsets": (B, cameras, 2) in [0, 1), see `MultiViewResNetEncoder.crop`.
        * "image_features": {camera: (B, obs_horizon, D)}, the images' features, which replace them.
        * "noise": (B, pred_horizon, action_dim), standard normal.
        * "time_uniforms": (B, 3) in (0, 1).

        If `noise_samples_per_obs` is above one, the second axis of "noise" and "time_uniforms" is
        the noise sample. Missing keys are drawn from torch's generator.

        Raises:
            ValueError: images, poses or noise samples are missing.
        """
        inputs = self._objective_inputs(batch)
        # In half precision, rounding errors would dominate the derivatives of iMF.
        with torch.autocast(inputs.actions.device.type, enabled=False):
            loss = self.objective_loss(*inputs)
        if self.pose_head is None:
            return loss
        cond = inputs.cond[:: self.noise_samples_per_obs]
        cond = cond.unflatten(1, (self.obs_horizon, -1)).flatten(2)
        poses = join_poses(batch, self.aux_pose_objects)
        is_pad, valid_count = batch["action_is_pad"], batch.get("valid_count")
        return loss + self.aux_pose_loss_weight * self.pose_head(cond, poses, is_pad, valid_count)

    def compute_loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Check a batch and compute its scalar training loss; see `forward`.

        Raises:
            ValueError: an input is missing, or has a wrong shape, type or device.
        """
        check_batch(self, batch, self.device)
        return self(batch)

    @torch.no_grad()
    def predict_action(
        self,
        obs: Mapping[str, Any],
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Predict action chunks (B, pred_horizon, action_dim) in real units.

        Index obs_horizon - 1 is the action of the newest observation's step.

        Args:
            obs: "images" {camera: (B, obs_horizon, H, W, 3) uint8}, "qpos" (B, obs_horizon,
                state_dim), and "object_poses" {name: (B, obs_horizon, 7)} of privileged objects.
            noise: standard normal (B, pred_horizon, action_dim), the start of the integration. None
                draws it.
            generator: random generator for drawn noise, on any device.

        Raises:
            ValueError: an input is missing, or has a wrong shape, type or device.
        """
        check_windows(self, obs, self.device)
        cond = self._build_cond(obs).to(self.action_normalizer.mean.dtype)
        if noise is None:
            shape = (cond.shape[0], self.pred_horizon, self.action_dim)
            device = cond.device if generator is None else generator.device
            noise = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
        actions = self._sample_actions(noise.to(cond), cond)
        return self.action_normalizer.unnormalize(actions)

    def select_action(
        self,
        obs: Mapping[str, Any],
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the action (B, action_dim) of one control step.

        A new chunk is predicted when the previous one is used up.

        Args:
            obs: the control step's "images" {camera: (B, H, W, 3) uint8}, "qpos" (B, state_dim) and
                "object_poses" {name: (B, 7)} of privileged objects. Images are optional when
                `needs_images` is False.
            noise, generator: as in `predict_action`, used when a chunk is predicted.

        Raises:
            ValueError: an input is missing, or has a wrong shape or type. The observation is then
                not added to the history.
        """
        self._populate_queues(obs)
        if self._queue.needs_prediction:
            window = self._prepare_observation_batch(self._queue.observation_window())
            self._queue.add_chunk(self.predict_action(window, noise, generator))
        return self._queue.pop_action()

    def reset(self) -> None:
        """Clear history and queued actions. Call this when an episode starts."""
        self._queue.reset()

    def get_normalization_stats(self) -> dict[str, Any]:
        """Return the normalization statistics in the form of the constructor's `stats`."""
        state = self.qpos_normalizer.statistics()
        poses = split_pose_stats(state, self.privileged_pose_objects, start=self.state_dim)
        if self.pose_head is not None:
            targets = self.pose_head.normalizer.statistics()
            poses |= split_pose_stats(targets, self.aux_pose_objects)
        return {
            "qpos": {name: values[: self.state_dim] for name, values in state.items()},
            "action": self.action_normalizer.statistics(),
            "object_poses": poses,
        }

    def get_optim_groups(self, weight_decay: float = 1e-3) -> list[dict[str, Any]]:
        """Return AdamW parameter groups.

        The head defines its own groups if it has `get_optim_groups`. Elsewhere only parameters with
        two or more dimensions decay.
        """
        groups: list[dict[str, Any]] = []
        rest = dict(self.named_parameters())
        head_groups = getattr(self.head, "get_optim_groups", None)
        if head_groups is not None:
            groups += head_groups(weight_decay)
            rest = {name: p for name, p in rest.items() if not name.startswith("head.")}
        trained = [p for p in rest.values() if p.requires_grad]
        groups.append({"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay})
        groups.append({"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0})
        return groups

    @abstractmethod
    def objective_loss(
        self,
        actions: Tensor,
        cond: Tensor,
        noise: Tensor,
        uniforms: Tensor,
        is_pad: Tensor,
        valid_count: Tensor | None = None,
    ) -> Tensor:
        """Compute the scalar loss from tensors alone, see `ObjectiveInputs`.

        `torch.compile(fullgraph=True)` compiles it to one graph if the head has no dropout.
        """

    @abstractmethod
    def _sample_actions(self, noise: Tensor, cond: Tensor) -> Tensor:
        """Map noise to normalized actions, both (B, pred_horizon, action_dim)."""

    def _objective_inputs(self, batch: Mapping[str, Any]) -> ObjectiveInputs:
        """Normalize actions, encode observations once, and repeat them for each noise sample."""
        actions = self.action_normalizer.normalize(batch["action"].to(self.action_normalizer.mean))
        # Encoders may run in half precision (autocast). Objectives run in full precision.
        cond = self._build_cond(batch).to(actions.dtype)
        noise, uniforms = batch.get("noise"), batch.get("time_uniforms")
        is_pad, valid_count = batch["action_is_pad"], batch.get("valid_count")
        repeats = self.noise_samples_per_obs
        if repeats > 1:
            noise = flatten_noise_samples("noise", noise, (len(actions), repeats))
            uniforms = flatten_noise_samples("time_uniforms", uniforms, (len(actions), repeats))
            valid_count = None if valid_count is None else valid_count * repeats
            actions, cond, is_pad = (
                x.repeat_interleave(repeats, dim=0) for x in (actions, cond, is_pad)
            )
        if noise is None:
            noise = torch.randn_like(actions)
        if uniforms is None:
            uniforms = actions.new_empty(len(actions), 3).uniform_()
        return ObjectiveInputs(actions, cond, noise, uniforms, is_pad, valid_count)

    def _build_cond(self, obs: Mapping[str, Any]) -> Tensor:
        """Encode observation windows to condition tokens (B, sequence length, cond_dim)."""
        if obs["qpos"].shape[-1] != self.state_dim:
            raise ValueError(
                f"qpos has {obs['qpos'].shape[-1]} numbers, but the policy takes state_dim="
                f"{self.state_dim}; pass object poses as object_poses"
            )
        state = join_poses(obs, self.privileged_pose_objects, first="qpos")
        state = self.qpos_normalizer.normalize(state.to(self.qpos_normalizer.mean))
        if self.vision_encoder is None:
            return state
        if "image_features" in obs:
            given = obs["image_features"]
            features = torch.stack([given[name] for name in self.camera_names], dim=2)
        else:
            offsets = obs.get("crop_offsets")
            if offsets is None and self.training:
                offsets = state.new_empty(len(state), len(self.camera_names), 2).uniform_()
            bf16 = self.bf16_encoders and self.training
            features = self.vision_encoder.encode_windows(
                obs["images"], self.image_normalizer, offsets, bf16
            )
        if self.conditioning == "single_token":
            return torch.cat((features.flatten(2), state), dim=-1)
        state = state[:, :, None].expand(-1, -1, features.shape[2], -1)
        return self.projector(torch.cat((features, state), dim=-1)).flatten(1, 2)

    def _populate_queues(self, obs: Mapping[str, Any]) -> None:
        """Append the observation of a control step, without unused cameras and objects."""
        check_observation(self, obs, {"B": None}, images=self.needs_images)
        images = {name: obs["images"][name] for name in self.camera_names if self.needs_images}
        poses = {name: obs["object_poses"][name] for name in self.privileged_pose_objects}
        self._queue.add_observation({"qpos": obs["qpos"], "images": images, "object_poses": poses})

    def _prepare_observation_batch(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """Move a window of observations to the agent's device."""
        device = self.device
        batch: dict[str, Any] = {"qpos": obs["qpos"].to(device)}
        for group in ("images", "object_poses"):
            batch[group] = {name: array.to(device) for name, array in obs[group].items()}
        return batch
