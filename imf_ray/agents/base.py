"""What every agent shares: observation encoding, normalization, conditioning and queues."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from imf_ray.agents.action_queue import ActionQueue
from imf_ray.agents.normalization import (
    EE_QUATERNION_SLICES,
    POSE_DIM,
    ImageNormalizer,
    Normalizer,
    pose_quaternion_slices,
)
from imf_ray.agents.pose_head import PoseHead
from imf_ray.models.imf_transformer import IMFTransformer1D
from imf_ray.models.vision import MultiViewResNetEncoder

CONDITIONING_MODES = ("single_token", "multi_token")
ACTION_SPACES = ("joint", "ee")
EE_ACTION_DIM = 16


class VLAAgent(nn.Module, ABC):
    """A policy from camera images and joint state to action chunks, without its objective.

    The agent is the module that DDP wraps: its forward is the loss, so that gradients are averaged.
    A subclass supplies the objective: `objective_loss` and `_sample_actions`.

    A batch is a dict: "images" {camera: (B, obs_horizon, H, W, 3) uint8}, "qpos" (B, obs_horizon,
    state_dim), "action" (B, pred_horizon, action_dim) in real units and "action_is_pad" (B,
    pred_horizon) bool; an observation is its first two. Other keys and cameras are ignored. Padded
    actions do not count in the loss, but the head reads them as context, so they hold edge values.

    The condition is a token sequence. "single_token": one token per observation step, all camera
    features and the state side by side. "multi_token": one token per step and camera, its features
    and the state, projected to the head's width.

    Args:
        action_dim, state_dim: widths of an action and of qpos.
        num_poses: object poses (xyz, quaternion wxyz) that stand behind qpos in the observation's
            "qpos", which is then (B, obs_horizon, state_dim + 7 * num_poses).
        num_target_poses: further poses behind those in a batch's "qpos", which are not input:
            training adds `aux_pose_loss_weight` times the error of a `PoseHead` for them.
        aux_pose_loss_weight: see there.
        camera_names: cameras the policy looks at, in this order; none for a policy on state alone.
        obs_horizon, pred_horizon, num_action_steps: observations per window, actions per chunk, and
            how many of those are executed before the next chunk.
        inference_steps: network calls per chunk.
        noise_samples_per_obs: independent draws (noise and times) at which the objective is
            evaluated for each sample, whose images are encoded once.
        vision_encoder: arguments of `MultiViewResNetEncoder` other than the cameras.
        head: arguments of the head other than its widths and lengths, which the agent knows.
        head_factory: builds the head; called with `IMFTransformer1D`'s argument names.
        conditioning: one of `CONDITIONING_MODES`.
        normalization_type: one of `normalization.NORMALIZATION_TYPES`, for qpos and actions.
        action_space: one of `ACTION_SPACES`. "joint": joint targets (rad) and grippers. "ee": twice
            xyz (m), quaternion wxyz, gripper; the state stays qpos.
        stats: {"qpos": ..., "action": ...}, each as `Normalizer` takes them; None when a state dict
            follows.

    Raises:
        ValueError: for an impossible combination, naming the option, its value and the way out.
    """

    def __init__(
        self,
        *,
        action_dim: int,
        state_dim: int,
        num_poses: int = 0,
        num_target_poses: int = 0,
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
        _check_horizons(obs_horizon, pred_horizon, num_action_steps, inference_steps)
        if noise_samples_per_obs < 1:
            raise ValueError(f"noise_samples_per_obs={noise_samples_per_obs}: must be at least 1")
        check_choice("conditioning", conditioning, CONDITIONING_MODES)
        check_choice("action_space", action_space, ACTION_SPACES)
        if action_space == "ee" and action_dim != EE_ACTION_DIM:
            raise ValueError(
                f"action_space='ee' with action_dim={action_dim}: an end-effector action has "
                f"{EE_ACTION_DIM} numbers (twice xyz, quaternion, gripper); set action_space='joint' or "
                "fix the data"
            )
        self.action_dim = action_dim
        self.camera_names = tuple(camera_names)
        self.obs_horizon = obs_horizon
        self.pred_horizon = pred_horizon
        self.inference_steps = inference_steps
        self.noise_samples_per_obs = noise_samples_per_obs
        self.conditioning = conditioning
        self.bf16_encoders = False  # a setting of training, which is not saved

        quaternions = EE_QUATERNION_SLICES if action_space == "ee" else ()
        stats = stats or {}
        pose_places = pose_quaternion_slices(num_poses, start=state_dim)
        state_dim += num_poses * POSE_DIM
        self._state_dim = state_dim
        self.qpos_normalizer = Normalizer(
            state_dim,
            normalization_type,
            _select_dims(stats.get("qpos"), slice(state_dim if num_target_poses else None)),
            pose_places,
        )
        self.action_normalizer = Normalizer(
            action_dim, normalization_type, stats.get("action"), quaternions
        )
        self.image_normalizer = ImageNormalizer()
        if conditioning == "multi_token" and not self.camera_names:
            raise ValueError(
                "conditioning='multi_token' makes a token of each camera, but camera_names is empty; "
                "name cameras or set conditioning='single_token'"
            )
        self.vision_encoder = (
            MultiViewResNetEncoder(self.camera_names, **(vision_encoder or {}))
            if self.camera_names
            else None
        )
        features = self.vision_encoder.out_dim if self.vision_encoder is not None else 0

        head = dict(head or {})
        if conditioning == "single_token":
            self.projector: nn.Module = nn.Identity()
            cond_dim = len(self.camera_names) * features + state_dim
        else:
            if "n_emb" not in head:
                raise ValueError(
                    "conditioning='multi_token' projects tokens to the head's width; set head.n_emb"
                )
            cond_dim = head["n_emb"]
            self.projector = nn.Linear(features + state_dim, cond_dim)
        self.head = head_factory(
            input_dim=action_dim,
            output_dim=action_dim,
            horizon=pred_horizon,
            n_obs_steps=self.condition_sequence_length,
            cond_dim=cond_dim,
            **head,
        )
        self._num_targets = num_target_poses * POSE_DIM
        self.aux_pose_loss_weight = aux_pose_loss_weight
        self.pose_readout = None
        if num_target_poses:
            if not self.camera_names:
                raise ValueError(
                    "num_target_poses teaches image encoders, but camera_names is empty; name "
                    "cameras or set num_target_poses=0"
                )
            self.pose_readout = PoseHead(
                self.condition_tokens_per_step * cond_dim,
                num_target_poses,
                normalization_type,
                _select_dims(stats.get("qpos"), slice(state_dim, None)),
            )
        self._queue = ActionQueue(obs_horizon, num_action_steps, time_axis=1)

    @property
    def condition_tokens_per_step(self) -> int:
        """Condition tokens per observation step: 1, or one per camera."""
        return 1 if self.conditioning == "single_token" else len(self.camera_names)

    @property
    def condition_sequence_length(self) -> int:
        """Condition tokens the head sees."""
        return self.obs_horizon * self.condition_tokens_per_step

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """The loss, so that a DDP wrapper sees the whole computation and averages its gradients."""
        return self.compute_loss(batch)

    def compute_loss(self, batch: Mapping[str, Any]) -> Tensor:
        """The scalar training loss of a batch.

        Optional keys make it a function of the batch alone and of how it was split over ranks:
        "valid_count" (scalar tensor; valid actions of the global batch / number of ranks) replaces
        the batch's own count of valid actions as the loss's denominator, so that gradients averaged
        over ranks equal those of one process; "crop_offsets" (B, cameras, 2) in [0, 1) says where
        images are cropped; "noise" (B, pred_horizon, action_dim), standard normal, and
        "time_uniforms" (B, 3) in (0, 1) are the objective's, with the draw as second axis if
        `noise_samples_per_obs` is more than one. Without them torch's generator is used.

        Raises:
            ValueError: if a camera's images are missing, or random numbers of a draw.
        """
        actions, cond, rows = self._expand_noise_samples(batch)
        loss = self._loss_from_condition(actions, cond, rows)
        if self.pose_readout is None:
            return loss
        steps = cond[:: self.noise_samples_per_obs].unflatten(1, (self.obs_horizon, -1)).flatten(2)
        poses = batch["qpos"][..., self._state_dim :]
        is_pad, valid_count = batch["action_is_pad"], batch.get("valid_count")
        return loss + self.aux_pose_loss_weight * self.pose_readout(
            steps, poses, is_pad, valid_count
        )

    @torch.no_grad()
    def predict_action(
        self,
        obs: Mapping[str, Any],
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Action chunks (B, pred_horizon, action_dim) in real units.

        Index obs_horizon - 1 is the action of the newest observation's step.

        Args:
            obs: images {camera: (B, obs_horizon, H, W, 3) uint8}, qpos (B, obs_horizon, state_dim).
            noise: standard normal (B, pred_horizon, action_dim) to start from; drawn if None.
            generator: source of the drawn noise, on any device.
        """
        cond = self._build_cond(obs).to(self.action_normalizer.mean.dtype)
        if noise is None:
            shape = (cond.shape[0], self.pred_horizon, self.action_dim)
            device = cond.device if generator is None else generator.device
            noise = torch.randn(shape, generator=generator, device=device)
        actions = self._sample_actions(noise.to(cond), cond)
        return self.action_normalizer.unnormalize(actions)

    def select_action(
        self,
        obs: Mapping[str, Any],
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The action (B, action_dim) of one control step; predicts when the last chunk ran out.

        Args:
            obs: this step's images {camera: (B, H, W, 3) uint8} and qpos (B, state_dim). Images may
                be left out of steps the policy does not look at (`ChunkQueue.needs_images`).
            noise, generator: as in `predict_action`, used when a chunk is due.
        """
        self._populate_queues(obs)
        if self._queue.needs_prediction:
            window = self._prepare_observation_batch(self._queue.window())
            self._queue.extend(self.predict_action(window, noise, generator))
        return self._queue.pop()

    def reset(self) -> None:
        """Forgets history and queued actions; call it when an episode starts."""
        self._queue.reset()

    def get_normalization_stats(self) -> dict[str, dict[str, Tensor]]:
        """The statistics in use, in the form of the constructor's `stats`."""
        state = self.qpos_normalizer.statistics()
        if self.pose_readout is not None:
            poses = self.pose_readout.normalizer.statistics()
            state = {name: torch.cat((values, poses[name])) for name, values in state.items()}
        return {
            "qpos": state,
            "action": self.action_normalizer.statistics(),
        }

    def get_optim_groups(self, weight_decay: float = 1e-3) -> list[dict[str, Any]]:
        """AdamW parameter groups: the head's own if any; of the rest, only weights decay."""
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
        """The scalar loss as a function of tensors alone: everything after the encoders.

        `torch.compile(fullgraph=True)` takes it whole if the head has no dropout.

        Args:
            actions, noise: (B, pred_horizon, action_dim), normalized; a row is a draw of a sample.
            cond: (B, condition_sequence_length, cond_dim).
            uniforms: (B, 3) in (0, 1), from which times follow.
            is_pad: (B, pred_horizon) bool.
            valid_count: scalar, see `compute_loss`.
        """

    @abstractmethod
    def _sample_actions(self, noise: Tensor, cond: Tensor) -> Tensor:
        """Normalized actions (B, pred_horizon, action_dim) from noise of that shape."""

    def _loss_from_condition(
        self, actions: Tensor, cond: Tensor, rows: Mapping[str, Any]
    ) -> Tensor:
        """The loss of what `_expand_noise_samples` returns."""
        noise, uniforms = self._draws(actions, rows)
        is_pad, valid_count = rows["action_is_pad"], rows.get("valid_count")
        # Derivatives would be mostly rounding in half precision, even if the caller computes in it.
        with torch.autocast(actions.device.type, enabled=False):
            return self.objective_loss(actions, cond, noise, uniforms, is_pad, valid_count)

    @staticmethod
    def _draws(actions: Tensor, rows: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Noise like the actions and uniforms (B, 3): those given, or torch's."""
        noise, uniforms = rows.get("noise"), rows.get("time_uniforms")
        if noise is None:
            noise = torch.randn_like(actions)
        if uniforms is None:
            uniforms = actions.new_empty(len(actions), 3).uniform_()
        return noise, uniforms

    def _expand_noise_samples(
        self, batch: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Mapping[str, Any]]:
        """Actions, condition and what else the objective reads of a batch, a sample's draws one
        after the other."""
        actions = self.action_normalizer.normalize(batch["action"].to(self.action_normalizer.mean))
        # Encoders may run in half precision (autocast); objectives do not.
        cond = self._build_cond(batch).to(actions.dtype)
        draws = self.noise_samples_per_obs
        if draws == 1:
            return actions, cond, batch
        rows = {"action_is_pad": batch["action_is_pad"].repeat_interleave(draws, dim=0)}
        for key in ("noise", "time_uniforms"):
            if batch.get(key) is not None:
                _check_noise_shape(key, batch[key], (len(actions), draws))
                rows[key] = batch[key].flatten(0, 1)
        if batch.get("valid_count") is not None:
            rows["valid_count"] = batch["valid_count"] * draws
        actions, cond = (x.repeat_interleave(draws, dim=0) for x in (actions, cond))
        return actions, cond, rows

    def _build_cond(self, obs: Mapping[str, Any]) -> Tensor:
        """Observation windows -> condition tokens (B, condition_sequence_length, cond_dim)."""
        width, targets = obs["qpos"].shape[-1], self._num_targets
        if width not in (self._state_dim, self._state_dim + targets):
            raise ValueError(
                f"qpos has {width} numbers; give {self._state_dim}, or in training "
                f"{self._state_dim + targets} with the poses to be told"
            )
        known = obs["qpos"][..., : self._state_dim]
        state = self.qpos_normalizer.normalize(known.to(self.qpos_normalizer.mean))
        if self.vision_encoder is None:
            return state
        places = obs.get("crop_offsets")
        if places is None and self.training:
            places = state.new_empty(len(state), len(self.camera_names), 2).uniform_()
        features = self._encode_images(self.vision_encoder, obs["images"], places)
        if self.conditioning == "single_token":
            return torch.cat((features.flatten(2), state), dim=-1)
        state = state[:, :, None].expand(-1, -1, features.shape[2], -1)
        return self.projector(torch.cat((features, state), dim=-1)).flatten(1, 2)

    def _encode_images(
        self, encoder: MultiViewResNetEncoder, images: Mapping[str, Tensor], places: Tensor | None
    ) -> Tensor:
        """Images {camera: (B, T, H, W, 3) uint8} -> features (B, T, K, D).

        `places` (B, K, 2) says where they are cropped (see `MultiViewResNetEncoder.crop`).
        """
        cropped = {
            name: encoder.crop(image, None if places is None else places[:, camera])
            for camera, (name, image) in enumerate(encoder.select(images).items())
        }
        flat = {name: self.image_normalizer(image.flatten(0, 1)) for name, image in cropped.items()}
        half = self.bf16_encoders and self.training
        device = self.qpos_normalizer.mean.device.type
        with torch.autocast(device, torch.bfloat16) if half else nullcontext():
            return encoder(flat).unflatten(0, (-1, self.obs_horizon))

    def _populate_queues(self, obs: Mapping[str, Any]) -> None:
        """Appends one step's observation, of the cameras in use, to the history."""
        images = obs.get("images")
        if self.vision_encoder is None:
            images = {}
        elif images:
            images = self.vision_encoder.select(images)
        self._queue.push({"images": images, "qpos": obs["qpos"]})

    def _prepare_observation_batch(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """Moves a window of observations to the agent's device."""
        device = self.qpos_normalizer.mean.device
        images = {name: image.to(device) for name, image in obs["images"].items()}
        return {"images": images, "qpos": obs["qpos"].to(device)}


def _select_dims(stats: Mapping[str, Any] | None, columns: slice) -> dict[str, Any] | None:
    return None if stats is None else {name: values[columns] for name, values in stats.items()}


def check_choice(option: str, value: str, known: Sequence[str]) -> None:
    """Raises a ValueError that names the known values unless `value` is one of them."""
    if value not in known:
        raise ValueError(f"{option}={value!r} is unknown; choose one of {', '.join(known)}")


def _check_noise_shape(key: str, numbers: Tensor, expected: tuple[int, int]) -> None:
    if numbers.shape[:2] != expected:
        raise ValueError(
            f"batch[{key!r}] has shape {tuple(numbers.shape)}, but noise_samples_per_obs="
            f"{expected[1]} takes {expected} and more; draw as many, or leave {key!r} out"
        )


def _check_horizons(obs: int, pred: int, executed: int, inference_steps: int) -> None:
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
            f"num_action_steps={executed} does not fit: of pred_horizon={pred} actions that start "
            f"at the oldest of obs_horizon={obs} observations, {available} are left from now on; "
            f"set num_action_steps <= {available} or pred_horizon >= {executed + obs - 1}"
        )
