"""The policy: agent, head, image encoder."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import II, MISSING

from imf_ray.errors import UserError
from imf_ray.schema.checks import check_choice, check_min

DATA_CAMERAS, AGENT_CAMERAS = II("data.camera_names"), II("agent.camera_names")


@dataclass
class HeadConfig:
    """The transformer head; the names are the constructors' of `IMFTransformer1D` and
    `Transformer1D`."""

    backbone_type: str = "attnres_full"
    """`attnres_full` (attention residuals) or `transformer` (the standard encoder-decoder, for
    `agent.objective=ddpm`; it ignores `n_kv_head` and `attn_res_*`)."""
    n_layer: int = 12
    n_head: int = 1
    n_kv_head: int = 1
    n_emb: int = 384
    p_drop_emb: float = 0.0
    p_drop_attn: float = 0.0
    causal_attn: bool = False
    time_as_cond: bool = True
    n_cond_layers: int = 0
    """Layers of the condition encoder that `transformer` has; 0 is a small network per token."""
    attn_res_ffn_mult: float = 2.667
    attn_res_eps: float = 1e-6
    attn_res_rope_theta: float = 1e4


@dataclass
class DDPMConfig:
    """The noise of `agent.objective=ddpm`; the names are those of diffusers' schedulers."""

    num_train_timesteps: int = 100
    """Noise levels; a multiple of `agent.inference_steps`."""
    beta_schedule: str = "squaredcos_cap_v2"
    """`squaredcos_cap_v2` (cosine) or `linear`."""
    prediction_type: str = "epsilon"
    """What the head predicts: `epsilon` (the noise), `sample` (the actions) or `v_prediction`."""
    clip_sample: bool = True
    """Clip each estimate of the actions to [-1, 1], where `min_max` normalization puts them."""


@dataclass
class VisionBackboneConfig:
    """The image encoder; `stage_widths` (16, 32, 64, 128) makes the narrow trunk."""

    vision_backbone_mode: str = "resnet"
    pretrained_backbone_weights: str | None = None
    freeze_backbone: bool = False
    use_separate_rgb_encoder_per_camera: bool = True
    camera_names: list[str] = AGENT_CAMERAS
    num_keypoints: int = 32
    stage_widths: list[int] = field(default_factory=lambda: [64, 128, 256, 512])
    blocks_per_stage: list[int] = field(default_factory=lambda: [2, 2, 2, 2])
    stage_strides: list[int] = field(default_factory=lambda: [1, 2, 2, 2])
    crop_size: int | None = None
    """Side of the square that is looked at, somewhere in the picture in training (augmentation),
    in its middle otherwise; null is the whole picture."""


@dataclass
class AgentConfig:
    """The policy: what it sees, what it predicts, and how it is trained."""

    name: str = MISSING
    """The group's name, for records."""
    objective: str = "imf"
    """`imf` (improved MeanFlow), `flow` (flow matching) or `ddpm` (denoising diffusion, DDIM)."""
    conditioning: str = "single_token"
    """`single_token` (one token a step) or `multi_token` (one token a step and camera)."""
    state_dim: int = 16
    """Width of `qpos`."""
    privileged_pose_objects: list[str] = field(default_factory=list)
    """Objects whose true pose is part of the state: a policy that is told what it should see."""
    aux_pose_objects: list[str] = field(default_factory=list)
    """Objects whose true pose the image encoders are taught to tell (`PoseReadout`), where it was
    recorded; acting does not need it."""
    aux_pose_loss_weight: float = 1.0
    """Weight of that lesson beside the objective."""
    action_dim: int = 16
    obs_horizon: int = 2
    pred_horizon: int = 16
    num_action_steps: int = 8
    inference_steps: int = 1
    camera_names: list[str] = DATA_CAMERAS
    normalization_type: str = "min_max"
    loss_type: str = "pseudo_huber"
    """`mse`, `pseudo_huber`, or of velocities `adaptive` (each sample over its own error)."""
    prediction_type: str = "velocity"
    """What the head predicts: `velocity`, or `sample` (the actions, from which a velocity follows,
    and which learns much faster); of ddpm it is `ddpm.prediction_type`."""
    time_sampler: str = "logit_normal"
    """Of the times to train at. imf: `uniform`, `logit_normal`, `meanflow_v1` or `endpoint_mix` (see
    `agents/time_sampling.py`); flow: `uniform`, `logit_normal` or `beta`; ddpm draws its timesteps
    evenly."""
    aux_v_head: bool = False
    """Give imf a second output, the instantaneous velocity, as the direction of its derivative."""
    noise_samples_per_obs: int = 1
    """Random draws at which the objective is evaluated for each sample: the encoders' work is done
    once, and the gradient's variance falls."""
    ddpm: DDPMConfig = field(default_factory=DDPMConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    vision_backbone: VisionBackboneConfig = field(default_factory=VisionBackboneConfig)

    def __post_init__(self) -> None:
        check_choice("agent.objective", self.objective, ("imf", "flow", "ddpm"))
        check_choice("agent.conditioning", self.conditioning, ("single_token", "multi_token"))
        check_min(
            "agent",
            self,
            obs_horizon=1,
            pred_horizon=1,
            inference_steps=1,
            noise_samples_per_obs=1,
        )
        if self.aux_v_head and self.objective != "imf":
            raise UserError(
                f"agent.aux_v_head=true belongs to agent.objective=imf, not {self.objective}: set "
                "agent.aux_v_head=false or agent.objective=imf."
            )
        if self.aux_pose_objects and not self.camera_names:
            raise UserError(
                f"agent.aux_pose_objects={list(self.aux_pose_objects)} teaches image "
                "encoders, but agent.camera_names is empty: name cameras, or give the poses to the "
                "policy by agent.privileged_pose_objects."
            )
        if not 1 <= self.num_action_steps <= self.executable_steps:
            raise UserError(
                f"agent.num_action_steps={self.num_action_steps} must lie between 1 and "
                f"agent.pred_horizon - agent.obs_horizon + 1 = {self.executable_steps}: execution "
                "starts at the action of the newest observation."
            )
        head = self.head
        check_choice(
            "agent.head.backbone_type", head.backbone_type, ("attnres_full", "transformer")
        )
        if head.backbone_type == "transformer":
            self._check_transformer()
        check_min("agent.head", head, n_head=1, n_kv_head=1, n_layer=1, n_emb=1)
        if head.n_emb % head.n_head:
            raise UserError(
                f"agent.head.n_emb={head.n_emb} is not divisible by agent.head.n_head="
                f"{head.n_head}: choose a head count that divides the width."
            )

    @property
    def executable_steps(self) -> int:
        """Actions of a chunk from that of the newest observation on."""
        return self.pred_horizon - self.obs_horizon + 1

    @property
    def recorded_objects(self) -> tuple[str, ...]:
        """Objects whose recorded poses stand behind the state in training, in this order."""
        return (*self.privileged_pose_objects, *self.aux_pose_objects)

    def _check_transformer(self) -> None:
        if self.objective != "ddpm":
            raise UserError(
                f"agent.objective={self.objective} gives its head two times, r and t, but that of "
                "agent.head.backbone_type=transformer takes one timestep: set "
                "agent.objective=ddpm or agent.head.backbone_type=attnres_full."
            )
        if self.head.causal_attn and self.conditioning == "multi_token":
            raise UserError(
                "agent.head.causal_attn=true with agent.head.backbone_type=transformer takes a "
                "condition token for a step, but agent.conditioning=multi_token makes one of each "
                "camera: set agent.conditioning=single_token or agent.head.causal_attn=false."
            )
