"""The sections of the policy: agent, head and image encoder."""

from __future__ import annotations

from dataclasses import dataclass

from imf_ray.errors import UserError
from imf_ray.schema.options import (
    DEFAULT_CAMERAS,
    check_options,
    load_registry,
    option,
    section,
)

OBJECTIVES = "imf_ray.agents.registry:OBJECTIVES"


@dataclass
class HeadConfig:
    """The transformer that predicts an action chunk. Options are arguments of its constructor."""

    backbone_type: str = option(
        "attnres_full",
        "attnres_full is the attention-residual transformer. transformer is the standard "
        "encoder-decoder for agent.objective=ddpm. It ignores n_kv_head and attn_res_*.",
        choices=("attnres_full", "transformer"),
    )
    n_layer: int = option(12, "Number of transformer blocks.", min=1)
    n_head: int = option(1, "Number of query heads. It must divide n_emb.", min=1)
    n_kv_head: int = option(1, "Number of key and value heads. It must divide n_head.", min=1)
    n_emb: int = option(384, "Width of the token embeddings.", min=1)
    p_drop_emb: float = option(0.0, "Dropout probability of the token embeddings.")
    p_drop_attn: float = option(0.0, "Dropout probability inside the blocks.")
    causal_attn: bool = option(
        False, "Let an action token attend only to itself and earlier action tokens."
    )
    time_as_cond: bool = option(
        True, "Pass the times to the head as tokens. Both backbones require true."
    )
    n_cond_layers: int = option(
        0,
        "Number of layers of the condition encoder of backbone_type=transformer. 0 uses a small "
        "MLP per token. attnres_full requires 0.",
    )
    attn_res_ffn_mult: float = option(2.667, "Width of the SwiGLU layers as a multiple of n_emb.")
    attn_res_eps: float = option(1e-6, "Epsilon of RMSNorm.")
    attn_res_rope_theta: float = option(1e4, "Base of the rotary position embedding.")

    def __post_init__(self) -> None:
        check_options("agent.head", self)
        if self.n_emb % self.n_head:
            raise UserError(
                f"agent.head.n_emb={self.n_emb} is not divisible by agent.head.n_head="
                f"{self.n_head}. Choose a number of heads that divides the width."
            )


@dataclass
class DDPMConfig:
    """Noise schedule of agent.objective=ddpm, named as in diffusers' schedulers."""

    num_train_timesteps: int = option(
        100, "Number of noise levels. It must be a multiple of agent.inference_steps."
    )
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

    vision_backbone_mode: str = option("resnet", "Type of the trunk. Only resnet is available.")
    pretrained_backbone_weights: str | None = option(
        None,
        "Weights of torchvision's resnet18, such as IMAGENET1K_V1. They require the default "
        "stages. null trains from scratch.",
    )
    freeze_backbone: bool = option(
        False, "Do not train the trunks. Keypoints and projections are still trained."
    )
    freeze_encoders: bool = option(
        False,
        "Do not train the image encoders at all. Without crops, each image of the data set is then "
        "encoded only once. Use it with train.init_from.",
    )
    use_separate_rgb_encoder_per_camera: bool = option(
        True, "Use one encoder per camera. false shares one encoder among all cameras."
    )
    camera_names: list[str] = option(
        DEFAULT_CAMERAS, "Cameras to encode. The default is agent.camera_names."
    )
    num_keypoints: int = option(
        32, "Number of spatial softmax keypoints. A camera has twice as many features."
    )
    stage_widths: list[int] = option(
        [64, 128, 256, 512],
        "Channels of the four ResNet stages. The default is resnet18; [16, 32, 64, 128] is a "
        "narrow trunk for CPUs.",
    )
    blocks_per_stage: list[int] = option(
        [2, 2, 2, 2], "Number of residual blocks in each of the four stages."
    )
    stage_strides: list[int] = option(
        [1, 2, 2, 2],
        "Strides of the four stages. A last stride of 1 doubles the feature map, which locates "
        "keypoints of small images more finely.",
    )
    crop_size: int | None = option(
        None,
        "Side of a square crop in pixels. It is at a random position in training (augmentation) "
        "and central in evaluation. null uses the whole image.",
    )


@dataclass
class AgentConfig:
    """The policy: its inputs, its outputs and its training objective."""

    name: str = option("", "Name of the agent group, for records and run names.")
    objective: str = option(
        "imf",
        "Training objective: imf (improved MeanFlow), flow (flow matching) or ddpm (denoising "
        "diffusion, sampled by DDIM).",
        choices=OBJECTIVES,
    )
    conditioning: str = option(
        "single_token",
        "Condition tokens of one observation: single_token (one token for all cameras) or "
        "multi_token (one token per camera).",
        choices=("single_token", "multi_token"),
    )
    state_dim: int = option(16, "Width of the joint state qpos.")
    privileged_pose_objects: list[str] = option(
        [],
        "Objects whose true simulated pose is an input of the policy, for example [cube]. Such a "
        "policy cannot run on a real robot.",
    )
    aux_pose_objects: list[str] = option(
        [],
        "Objects whose recorded pose the image encoders learn to predict as an auxiliary task. "
        "Inference does not need the poses.",
    )
    aux_pose_loss_weight: float = option(1.0, "Weight of the auxiliary pose loss.")
    action_dim: int = option(16, "Width of an action.")
    obs_horizon: int = option(2, "Number of observations that the policy sees.", min=1)
    pred_horizon: int = option(16, "Number of actions in a predicted chunk.", min=1)
    num_action_steps: int = option(
        8,
        "Number of actions that are executed before the next chunk is predicted. The maximum is "
        "pred_horizon - obs_horizon + 1.",
    )
    inference_steps: int = option(1, "Number of network calls for one action chunk.", min=1)
    camera_names: list[str] = option(
        DEFAULT_CAMERAS, "Cameras that the policy sees. The default is data.camera_names."
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
        "velocity is computed). sample learns much faster. ddpm uses agent.ddpm.prediction_type.",
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
        "Add a second output, the instantaneous velocity. imf uses it as the direction of its "
        "time derivative. Only for agent.objective=imf.",
    )
    noise_samples_per_obs: int = option(
        1,
        "Number of noise and time samples per observation. More samples reduce the gradient's "
        "variance. Images are encoded once for all samples of an observation.",
        min=1,
    )
    ddpm: DDPMConfig = section(DDPMConfig)
    head: HeadConfig = section(HeadConfig)
    vision_backbone: VisionBackboneConfig = section(VisionBackboneConfig)

    @property
    def has_fixed_features(self) -> bool:
        """True if the features of an image never change: frozen encoders without random crops."""
        vision = self.vision_backbone
        return bool(self.camera_names) and vision.freeze_encoders and vision.crop_size is None

    def __post_init__(self) -> None:
        check_options("agent", self)
        objective = load_registry(OBJECTIVES)[self.objective]
        if self.aux_v_head and "aux_v_head" not in objective.options:
            raise UserError(
                f"agent.aux_v_head=true requires agent.objective=imf, but it is {self.objective}. "
                "Set agent.aux_v_head=false or agent.objective=imf."
            )
        if self.aux_pose_objects and not self.camera_names:
            raise UserError(
                f"agent.aux_pose_objects={list(self.aux_pose_objects)} trains image encoders, but "
                "agent.camera_names is empty. Add cameras, or make the poses inputs of the policy "
                "with agent.privileged_pose_objects."
            )
        if not 1 <= self.num_action_steps <= self.executable_steps:
            raise UserError(
                f"agent.num_action_steps={self.num_action_steps} must lie between 1 and "
                f"agent.pred_horizon - agent.obs_horizon + 1 = {self.executable_steps}, because "
                "execution starts at the action of the newest observation."
            )
        if self.head.backbone_type == "transformer":
            self._check_transformer(objective.needs_time_interval)

    @property
    def executable_steps(self) -> int:
        """Number of actions in a chunk from the newest observation's action to the end."""
        return self.pred_horizon - self.obs_horizon + 1

    @property
    def recorded_objects(self) -> tuple[str, ...]:
        """Objects whose recorded poses are read in training: privileged ones, then auxiliary."""
        return (*self.privileged_pose_objects, *self.aux_pose_objects)

    def _check_transformer(self, needs_time_interval: bool) -> None:
        if needs_time_interval:
            raise UserError(
                f"agent.objective={self.objective} gives its head two times, r and t, but "
                "agent.head.backbone_type=transformer takes one timestep. Set "
                "agent.objective=ddpm or agent.head.backbone_type=attnres_full."
            )
        if self.head.causal_attn and self.conditioning == "multi_token":
            raise UserError(
                "agent.head.causal_attn=true with agent.head.backbone_type=transformer needs one "
                "condition token per observation, but agent.conditioning=multi_token makes one "
                "per camera. Set agent.conditioning=single_token or agent.head.causal_attn=false."
            )
