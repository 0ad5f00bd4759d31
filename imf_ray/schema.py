"""The typed schema that describes every run: sections, their options, defaults and bounds.

A value out of bounds or an impossible combination raises `UserError` when a section is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import II, MISSING

from imf_ray.errors import UserError

DATA_CAMERAS, AGENT_CAMERAS = II("data.camera_names"), II("agent.camera_names")


@dataclass
class HeadConfig:
    """The transformer head; the names are the constructor's of `IMFTransformer1D`."""

    backbone_type: str = "attnres_full"
    n_layer: int = 12
    n_head: int = 1
    n_kv_head: int = 1
    n_emb: int = 384
    p_drop_emb: float = 0.0
    p_drop_attn: float = 0.0
    causal_attn: bool = False
    time_as_cond: bool = True
    n_cond_layers: int = 0
    attn_res_ffn_mult: float = 2.667
    attn_res_eps: float = 1e-6
    attn_res_rope_theta: float = 1e4


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
    condition: str = "single_token"
    """`single_token` (one token a step) or `multi_token` (one token a step and camera)."""
    state_dim: int = 16
    """Width of `qpos`."""
    pose_objects: list[str] = field(default_factory=list)
    """Objects whose true pose is part of the state: a policy that is told what it should see."""
    action_dim: int = 16
    obs_horizon: int = 2
    pred_horizon: int = 16
    num_action_steps: int = 8
    inference_steps: int = 1
    camera_names: list[str] = DATA_CAMERAS
    normalization_type: str = "min_max"
    loss_type: str = "pseudo_huber"
    time_sampler: str = "uniform"
    head: HeadConfig = field(default_factory=HeadConfig)
    vision_backbone: VisionBackboneConfig = field(default_factory=VisionBackboneConfig)

    def __post_init__(self) -> None:
        _choice("agent.condition", self.condition, ("single_token", "multi_token"))
        _at_least("agent", self, obs_horizon=1, pred_horizon=1, inference_steps=1)
        longest = self.pred_horizon - self.obs_horizon + 1
        if not 1 <= self.num_action_steps <= longest:
            raise UserError(
                f"agent.num_action_steps={self.num_action_steps} must lie between 1 and "
                f"agent.pred_horizon - agent.obs_horizon + 1 = {longest}: execution starts at the "
                "action of the newest observation."
            )
        head = self.head
        _at_least("agent.head", head, n_head=1, n_kv_head=1, n_layer=1, n_emb=1)
        if head.n_emb % head.n_head:
            raise UserError(
                f"agent.head.n_emb={head.n_emb} is not divisible by agent.head.n_head="
                f"{head.n_head}: choose a head count that divides the width."
            )


@dataclass
class DataConfig:
    """Where the demonstrations are and how they are read."""

    dataset_dir: str = "data/sim_transfer"
    camera_names: list[str] = field(default_factory=lambda: ["r_vis", "top", "front"])
    on_bad_episode: str = "error"
    """`error` stops at the first bad file; `skip` names each bad file and goes on without it."""
    chunk_steps: int = 25
    """Sample starts in one row of the Ray dataset (one read of one episode)."""
    pool_chunks: int = 4
    """Rows of one virtual shard whose windows are shuffled together in a worker."""
    virtual_shards: int | None = None
    """Virtual shards of the batch order: a divisor of the batch and a multiple of the workers.
    null is 8, or fewer for a batch that 8 does not divide. Fixed for the life of a run."""

    def __post_init__(self) -> None:
        _choice("data.on_bad_episode", self.on_bad_episode, ("error", "skip"))
        _at_least("data", self, chunk_steps=1, pool_chunks=1)
        if not self.camera_names:
            raise UserError("data.camera_names is empty: name at least one camera.")


@dataclass
class AdapterConfig:
    """How a gymnasium environment that is not ours becomes a task; docs/worlds.md explains it."""

    module: str | None = None
    """Imported first, to register `task.env_id`."""
    install: str | None = None
    """The command that installs the module, for the message where it is missing."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment's constructor."""
    world: str = "imf_ray.sim.adapter:AdaptedWorld"
    """The class that adapts it, `module:Class`."""
    cameras: dict[str, str] = field(default_factory=dict)
    """Where each camera's picture is: a dotted path in the observation, or `render()`."""
    qpos: list[str] = field(default_factory=list)
    """Dotted paths in the observation whose values, one after the other, are the state."""
    qvel: list[str] = field(default_factory=list)
    """The same for velocities; none is allowed."""
    action_scaling: str = "none"
    """`none`: actions are the environment's; `box`: -1 to 1 is stretched over its action Box."""
    progress: str = "reward"
    """What tells how far the episode is: `reward`, `terminated` or `info.KEY`."""
    stages: list[float] = field(default_factory=lambda: [1.0])
    """Stage k is reached where `progress` is at least the k-th number; the last is success."""
    success_rule: str = ""
    """What success means, in words, for records; empty is made from `progress` and `stages`."""
    ignore_termination: bool = False
    """Go on to `task.max_episode_steps` although the environment says that it is over."""

    def __post_init__(self) -> None:
        _choice("task.adapter.action_scaling", self.action_scaling, ("none", "box"))
        for key in ("cameras", "qpos", "stages"):
            if not getattr(self, key):
                raise UserError(f"task.adapter.{key} is empty (see docs/worlds.md).")
        if self.stages != sorted(set(self.stages)):
            raise UserError(f"task.adapter.stages={self.stages} must increase.")


@dataclass
class TaskConfig:
    """The simulated task, as recorded in episodes and as rolled out."""

    env_id: str = MISSING
    action_space: str = "joint"
    image_size: int = 96
    """Side of the square camera images, in pixels."""
    shadows: bool = False
    multisampling: bool = False
    control_hz: int = 50
    """Control steps per second; demonstrations and simulation must agree."""
    max_episode_steps: int = 400
    adapter: AdapterConfig | None = None
    """Adapts an environment that is not ours."""

    def __post_init__(self) -> None:
        if self.action_space not in ("joint", "ee"):
            raise UserError(
                f"task.action_space={self.action_space!r} is unknown: choose 'joint' or 'ee'."
            )
        _at_least("task", self, image_size=1, control_hz=1, max_episode_steps=1)

    def env_kwargs(self, camera_names: Sequence[str]) -> dict[str, Any]:
        """Arguments with which `make_world(env_id)` of `imf_ray.sim.world` makes this task."""
        return {
            "adapter": dataclasses.asdict(self.adapter) if self.adapter else None,
            "control_hz": self.control_hz,
            "max_episode_steps": self.max_episode_steps,
            "action_space": self.action_space,
            "image_size": self.image_size,
            "camera_names": tuple(camera_names),
            "shadows": self.shadows,
            "multisampling": self.multisampling,
        }


@dataclass
class TrainConfig:
    """Optimization, checkpoints and validation; the keys are RoboIMI's."""

    device: str = "cpu"
    """`cuda` gives each worker `cluster.gpus_per_worker` GPUs, `cpu` gives none."""
    seed: int = 42
    max_steps: int = 150_000
    batch_size: int = 80
    """Samples in one global batch, over all workers."""
    lr: float = 5e-4
    weight_decay: float = 1e-5
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    grad_clip: float = 1.0
    scheduler_type: str = "cosine"
    """`cosine` (to `min_lr` at `max_steps`) or `constant`, both after `warmup_steps`."""
    warmup_steps: int = 2000
    min_lr: float = 1e-6
    ema: bool = True
    """Keep an exponential moving average of the weights; validation judges it."""
    val_split: float = 0.1
    """Share of the episodes held out for the action error."""
    num_workers: int = 2
    """Parallel readers of each training worker."""
    log_freq: int = 100
    save_freq: int = 10_000
    keep_last: int = 2
    """Checkpoints kept beside the best one."""
    max_failures: int = 3
    """How often a run whose worker died is restarted from its newest checkpoint."""
    rollout_val_freq_epochs: int = 0
    """Validate by rollouts after every so many epochs; 0 never."""
    rollout_validate_on_checkpoint: bool = False
    rollout_num_episodes: int = 10
    rollout_seed: int = 400_000
    """Validation episodes are the seeds from here on."""
    use_swanlab: bool = False
    swanlab_project: str = "imf_ray"
    swanlab_mode: str = "online"
    """`online`, `offline` (to be sent later) or `local` (for a board on this machine); without a
    login `online` becomes `offline`."""

    def __post_init__(self) -> None:
        _choice("train.device", self.device, ("cpu", "cuda"))
        _choice("train.scheduler_type", self.scheduler_type, ("cosine", "constant"))
        _choice("train.swanlab_mode", self.swanlab_mode, ("online", "offline", "local"))
        _at_least(
            "train",
            self,
            max_steps=1,
            batch_size=1,
            num_workers=1,
            log_freq=1,
            save_freq=1,
            seed=0,
            warmup_steps=0,
            min_lr=0.0,
            weight_decay=0.0,
            max_failures=0,
            rollout_val_freq_epochs=0,
            rollout_num_episodes=1,
            rollout_seed=0,
        )
        for key in ("lr", "grad_clip"):
            if getattr(self, key) <= 0.0:
                raise UserError(f"train.{key}={getattr(self, key)} must be positive.")
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise UserError(f"train.betas={self.betas} must be two numbers in [0, 1).")
        if not 0.0 <= self.val_split < 1.0:
            raise UserError(f"train.val_split={self.val_split} must lie in [0, 1).")
        if self.keep_last < 2:
            raise UserError(
                f"train.keep_last={self.keep_last} must be at least 2: a single checkpoint is lost "
                "when its successor is written badly."
            )


@dataclass
class ClusterConfig:
    """What each part of a run takes from the Ray cluster; null is computed from what is there."""

    address: str | None = None
    """A running cluster (`auto` or HOST:PORT); null starts one here unless RAY_ADDRESS is set."""
    num_cpus: float | None = None
    """Logical CPUs of a cluster started here; null is the machine's."""
    num_gpus: float | None = None
    """Logical GPUs of a cluster started here; null is the machine's."""
    num_workers: int = 1
    """Training workers (ranks) of one run."""
    gpus_per_worker: float = 1.0
    """GPUs of one worker, used with `train.device=cuda`; trials may share one by fractions."""
    cpus_per_worker: float | None = None
    rollout_actors: int = 2
    """Simulators that run beside the training of one run."""
    cpus_per_rollout_actor: float | None = None
    gpus_per_rollout_actor: float = 1.0
    """GPUs of one simulator, used with `evaluate.device=cuda`."""
    dashboard: bool = True
    """Serve Ray's dashboard on 127.0.0.1 when a cluster is started here."""

    def __post_init__(self) -> None:
        _at_least("cluster", self, num_workers=1, rollout_actors=1)
        given = ("gpus_per_worker", "cpus_per_worker")
        for key in (*given, "cpus_per_rollout_actor", "gpus_per_rollout_actor"):
            value = getattr(self, key)
            if value is not None and value <= 0.0:
                raise UserError(f"cluster.{key}={value} must be positive.")


@dataclass
class CollectConfig:
    """Scripted demonstrations."""

    episodes: int = 50
    seed: int = 0
    """Attempts are the seeds from here on; the successful ones are kept."""

    def __post_init__(self) -> None:
        _at_least("collect", self, episodes=1, seed=0)


@dataclass
class EvaluateConfig:
    """Judging policies by rollouts: on which episodes, executed how, and what is kept of them."""

    episodes: int = 50
    seed: int = 500_000
    """Episodes are the seeds from here on."""
    stop_on_success: bool = False
    ema: bool = True
    """Judge the averaged weights where the checkpoint has them."""
    num_action_steps: int | None = None
    """Actions of a chunk that are executed; null is the checkpoint's `agent.num_action_steps`."""
    inference_steps: int | None = None
    """Network calls for a chunk; null is the checkpoint's `agent.inference_steps`."""
    device: str = "cpu"
    """`cuda` gives each actor `cluster.gpus_per_rollout_actor` GPUs."""
    envs_per_actor: int = 4
    """Environments that share an actor and its agent; records do not depend on it."""
    compute_batch: int = 4
    """Rows of every call of the policy, filled up where fewer chunks are due. Part of the settings,
    since kernels, and so the last bits of an action, depend on it."""
    episode_limit_s: float = 300.0
    """Own time after which an episode has failed."""
    allow_mismatch: bool = False
    """Judge in a task with other cameras, pictures, control rate or actions than trained in."""
    select: str | None = None
    """`best-of-run`: `checkpoint` is a run; its checkpoints are compared on the seeds from
    `select_seed`, and the best one is judged on the seeds from `seed`."""
    select_seed: int = 450_000
    select_episodes: int = 20
    video: str = "none"
    """A grid video of `all` episodes, failures first, of `failures`, or `none`."""
    video_episodes: int = 16
    """Episodes that the grid has at most."""
    trajectories: bool = False
    """Keep each episode's trajectory, and a picture with the path of the tools in red."""
    output: str | None = None
    """Folder of the records; null is `evaluations/` beside the checkpoint."""

    def __post_init__(self) -> None:
        _choice("evaluate.device", self.device, ("cpu", "cuda"))
        _choice("evaluate.video", self.video, ("all", "failures", "none"))
        if self.select is not None:
            _choice("evaluate.select", self.select, ("best-of-run",))
        _at_least(
            "evaluate",
            self,
            episodes=1,
            seed=0,
            envs_per_actor=1,
            compute_batch=1,
            select_seed=0,
            select_episodes=1,
            video_episodes=1,
        )
        for key in ("num_action_steps", "inference_steps"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"evaluate.{key}={value} must be at least 1.")
        if self.episode_limit_s <= 0.0:
            raise UserError(f"evaluate.episode_limit_s={self.episode_limit_s} must be positive.")


@dataclass
class CompareConfig:
    """Comparing policies on the same episodes."""

    oracles: bool = True
    """Add the task's expert and the first policy untrained, so that the table has both ends."""
    output: str | None = None
    """Folder of the comparison; null is `comparisons/` in `storage_path`."""


@dataclass
class TuneSettings:
    """The sweep."""

    max_concurrent_trials: int | None = None
    """Trials at a time; null is computed from the cluster."""
    cpus_per_trial: float = 1.0
    """CPUs that a trial is given at least when the slots of a CPU sweep are computed."""


@dataclass
class Config:
    """Everything a run depends on."""

    agent: AgentConfig = field(default_factory=AgentConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    tune: TuneSettings = field(default_factory=TuneSettings)
    search_space: str = "n_emb_n_layer"
    """A name in `search_spaces/` or the path of a YAML file."""
    checkpoint: str | None = None
    """What `imf_ray.evaluate` judges: a checkpoint folder, `expert`, `untrained:CHECKPOINT`,
    `replay:EPISODES`, or with `evaluate.select` a run."""
    run_name: str | None = None
    """Folder of the run in `storage_path`; naming an existing one goes on with it."""
    storage_path: str = "runs"
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        unread = [c for c in self.agent.camera_names if c not in self.data.camera_names]
        if unread:
            raise UserError(
                f"agent.camera_names asks for {unread}, which data.camera_names="
                f"{self.data.camera_names} does not read: add them there."
            )
        crop = self.agent.vision_backbone.crop_size
        if crop is not None and not 1 <= crop <= self.task.image_size:
            raise UserError(
                f"agent.vision_backbone.crop_size={crop} must lie between 1 and task.image_size="
                f"{self.task.image_size}."
            )


def _at_least(section: str, values: object, **bounds: float) -> None:
    """Refuse values of a section below their bounds."""
    for key, bound in bounds.items():
        if getattr(values, key) < bound:
            raise UserError(f"{section}.{key}={getattr(values, key)} must be at least {bound:g}.")


def _choice(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"{key}={value!r} is unknown: choose one of {', '.join(known)}.")
