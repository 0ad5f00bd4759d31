"""The policy: agent, head, image encoder."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import II, MISSING

from imf_ray.errors import UserError
from imf_ray.schema.options import check_options, load_registry, option, section

OBJECTIVES = "imf_ray.agents.registry:OBJECTIVES"
DATA_CAMERAS, AGENT_CAMERAS = II("data.camera_names"), II("agent.camera_names")


@dataclass
class HeadConfig:
    """The transformer that predicts an action chunk; options are arguments of its constructor."""

    backbone_type: str = option(
        "attnres_full",
        "attnres_full is the attention-residual transformer. transformer is the standard "
        "encoder-decoder for agent.objective=ddpm; it ignores n_kv_head and attn_res_*.",
        choices=("attnres_full", "transformer"),
    )
    n_layer: int = option(12, "Transformer blocks.", min=1)
    n_head: int = option(1, "Query heads; a divisor of n_emb.", min=1)
    n_kv_head: int = option(1, "Key and value heads; a divisor of n_head.", min=1)
    n_emb: int = option(384, "Width of the token embeddings.", min=1)
    p_drop_emb: float = option(0.0, "Dropout probability of the token embeddings.")
    p_drop_attn: float = option(0.0, "Dropout probability inside the blocks.")
    causal_attn: bool = option(False, "An action token attends only to itself and earlier ones.")
    time_as_cond: bool = option(True, "Times enter as tokens; both backbones require true.")
    n_cond_layers: int = option(
        0,
        "Layers of the condition encoder of backbone_type=transformer; 0 uses a small MLP per "
        "token. attnres_full requires 0.",
    )
    attn_res_ffn_mult: float = option(2.667, "SwiGLU width as a multiple of n_emb.")
    attn_res_eps: float = option(1e-6, "Epsilon of RMSNorm.")
    attn_res_rope_theta: float = option(1e4, "Base of the rotary position embedding.")

    def __post_init__(self) -> None:
        check_options("agent.head", self)
        if self.n_emb % self.n_head:
            raise UserError(
                f"agent.head.n_emb={self.n_emb} is not divisible by agent.head.n_head="
                f"{self.n_head}: choose a head count that divides the width."
            )


@dataclass
class DDPMConfig:
    """Noise schedule of agent.objective=ddpm, named as in diffusers' schedulers."""

    num_train_timesteps: int = option(100, "Noise levels; a multiple of agent.inference_steps.")
    beta_schedule: str = option(
        "squaredcos_cap_v2", "Noise schedule: squaredcos_cap_v2 (cosine) or linear."
    )
    prediction_type: str = option(
        "epsilon",
        "Target of the head: epsilon (the noise), sample (the actions) or v_prediction.",
    )
    clip_sample: bool = option(
        True,
        "Clip each estimate of the actions to [-1, 1], the range of min_max normalization.",
    )


@dataclass
class VisionBackboneConfig:
    """The image encoder: a ResNet trunk, spatial softmax keypoints and a projection."""

    vision_backbone_mode: str = option("resnet", "Kind of trunk; resnet is the only one.")
    pretrained_backbone_weights: str | None = option(
        None,
        "Weights of torchvision's resnet18, such as IMAGENET1K_V1, at its default sizes; null "
        "trains from scratch.",
    )
    freeze_backbone: bool = option(
        False, "Do not train the trunks; keypoints and projections still train."
    )
    use_separate_rgb_encoder_per_camera: bool = option(
        True, "Give each camera its own encoder; false shares one."
    )
    camera_names: list[str] = option(
        AGENT_CAMERAS, "Cameras that are encoded; the same as agent.camera_names by default."
    )
    num_keypoints: int = option(
        32, "Keypoints of the spatial softmax; a camera gives twice as many features."
    )
    stage_widths: list[int] = option(
        [64, 128, 256, 512],
        "Channels of the four ResNet stages. The default is resnet18; [16, 32, 64, 128] is a "
        "narrow trunk for CPUs.",
    )
    blocks_per_stage: list[int] = option([2, 2, 2, 2], "Residual blocks of the four stages.")
    stage_strides: list[int] = option(
        [1, 2, 2, 2],
        "Strides of the four stages. A last stride of 1 doubles the feature map, which locates "
        "keypoints of small images more finely.",
    )
    crop_size: int | None = option(
        None,
        "Side in pixels of a square crop: random in training (augmentation), central in "
        "evaluation. null uses the whole image.",
    )


@dataclass
class AgentConfig:
    """The policy: its inputs, its outputs and its training objective."""

    name: str = option(MISSING, "Name of the agent group, for records and run names.")
    objective: str = option(
        "imf",
        "Training objective: imf (improved MeanFlow), flow (flow matching) or ddpm (denoising "
        "diffusion, sampled by DDIM).",
        choices=OBJECTIVES,
    )
    conditioning: str = option(
        "single_token",
        "Condition tokens of an observation step: single_token (one for all cameras) or "
        "multi_token (one per camera).",
        choices=("single_token", "multi_token"),
    )
    state_dim: int = option(16, "Width of the joint state qpos.")
    privileged_pose_objects: list[str] = option(
        [],
        "Objects whose true simulated pose is an input of the policy, as [cube]. Such a policy "
        "cannot run on a real robot.",
    )
    aux_pose_objects: list[str] = option(
        [],
        "Objects whose recorded pose the image encoders learn to predict as an auxiliary task. "
        "Inference does not need the poses.",
    )
    aux_pose_loss_weight: float = option(1.0, "Weight of the auxiliary pose loss.")
    action_dim: int = option(16, "Width of an action.")
    obs_horizon: int = option(2, "Observation steps that the policy sees.", min=1)
    pred_horizon: int = option(16, "Actions in a predicted chunk.", min=1)
    num_action_steps: int = option(
        8,
        "Actions of a chunk that are executed before the next one is predicted; at most "
        "pred_horizon - obs_horizon + 1.",
    )
    inference_steps: int = option(1, "Network calls for one action chunk.", min=1)
    camera_names: list[str] = option(
        DATA_CAMERAS, "Cameras that the policy sees; data.camera_names by default."
    )
    normalization_type: str = option(
        "min_max", "Normalization of states and actions: min_max, mean_std or identity."
    )
    loss_type: str = option(
        "pseudo_huber",
        "Error function: mse, pseudo_huber or, for imf and flow, adaptive (each sample's loss is "
        "divided by its own error).",
    )
    prediction_type: str = option(
        "velocity",
        "Target of the head for imf and flow: velocity, or sample (the actions, from which the "
        "velocity follows; learns much faster). ddpm uses agent.ddpm.prediction_type.",
    )
    time_sampler: str = option(
        "logit_normal",
        "Distribution of the training times. imf: uniform, logit_normal, meanflow_v1, or "
        "endpoint_mix (a quarter each: r = t; r = 0 with uniform t; the interval (0, 1) of "
        "one-step inference; uniform r and t). flow: uniform, logit_normal or beta. ddpm "
        "ignores it.",
    )
    aux_v_head: bool = option(
        False,
        "Add a second output, the instantaneous velocity, which imf uses as the direction of its "
        "time derivative. Only for agent.objective=imf.",
    )
    noise_samples_per_obs: int = option(
        1,
        "Noise and time samples per observation. Images are encoded once for all of them; more "
        "samples reduce the gradient's variance.",
        min=1,
    )
    ddpm: DDPMConfig = section(DDPMConfig)
    head: HeadConfig = section(HeadConfig)
    vision_backbone: VisionBackboneConfig = section(VisionBackboneConfig)

    def __post_init__(self) -> None:
        check_options("agent", self)
        objective = load_registry(OBJECTIVES)[self.objective]
        if self.aux_v_head and "aux_v_head" not in objective.options:
            raise UserError(
                f"agent.aux_v_head=true belongs to agent.objective=imf, not {self.objective}: set "
                "agent.aux_v_head=false or agent.objective=imf."
            )
        if self.aux_pose_objects and not self.camera_names:
            raise UserError(
                f"agent.aux_pose_objects={list(self.aux_pose_objects)} trains image encoders, but "
                "agent.camera_names is empty: name cameras, or give the poses to the policy with "
                "agent.privileged_pose_objects."
            )
        if not 1 <= self.num_action_steps <= self.executable_steps:
            raise UserError(
                f"agent.num_action_steps={self.num_action_steps} must lie between 1 and "
                f"agent.pred_horizon - agent.obs_horizon + 1 = {self.executable_steps}: execution "
                "starts at the action of the newest observation."
            )
        if self.head.backbone_type == "transformer":
            self._check_transformer(objective.needs_time_interval)

    @property
    def executable_steps(self) -> int:
        """Number of actions in a chunk from the newest observation's action to the end."""
        return self.pred_horizon - self.obs_horizon + 1

    @property
    def recorded_objects(self) -> tuple[str, ...]:
        """Objects whose recorded poses training reads: the privileged ones, then the auxiliary."""
        return (*self.privileged_pose_objects, *self.aux_pose_objects)

    def _check_transformer(self, needs_time_interval: bool) -> None:
        if needs_time_interval:
            raise UserError(
                f"agent.objective={self.objective} gives its head two times, r and t, but "
                "agent.head.backbone_type=transformer takes one timestep: set "
                "agent.objective=ddpm or agent.head.backbone_type=attnres_full."
            )
        if self.head.causal_attn and self.conditioning == "multi_token":
            raise UserError(
                "agent.head.causal_attn=true with agent.head.backbone_type=transformer needs one "
                "condition token per step, but agent.conditioning=multi_token makes one per "
                "camera: set agent.conditioning=single_token or agent.head.causal_attn=false."
            )
