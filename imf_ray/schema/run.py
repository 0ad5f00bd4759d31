"""What is done: collecting, training, judging, sweeping, and on which cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

from imf_ray.errors import UserError
from imf_ray.schema.checks import check_choice, check_min


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
    compile: bool = False
    """Compile the image encoders and the loss: both are about twice as fast, after some minutes
    that the next run need not spend again. Fixed for the life of a run."""
    encoder_precision: str = "fp32"
    """`bf16` computes the image encoders in bfloat16, where the hardware has it; the rest, and all
    of evaluation, stays in float32."""
    gradient_accumulation_steps: int = 1
    """Parts in which each worker goes through its share of a batch, to take less memory. Gradients
    are those of the whole batch."""
    diagnostics_freq: int = 0
    """After every so many steps, log du/dt and the velocity's error by the length of the interval,
    and draw what each sub-layer reads (`depth_weights.png`); 0 never."""
    val_split: float = 0.1
    """Share of the episodes held out for the action error."""
    num_workers: int = 2
    """Parallel readers of each training worker."""
    log_freq: int = 100
    log_sample_ids: bool = False
    """Each worker writes the samples of each step to `samples_rank_0.jsonl` and so on."""
    save_freq: int = 10_000
    keep_last_k: int = 2
    """Checkpoints kept beside the best one."""
    max_failures: int = 3
    """How often in a row, with no new checkpoint in between, a run whose worker died is restarted
    from its newest one. One whose loss is no longer finite ends at once."""
    rollout_val_freq_epochs: int = 0
    """Validate by rollouts after every so many epochs; 0 never."""
    rollout_validate_on_checkpoint: bool = False
    rollout_num_episodes: int = 10
    rollout_seed: int = 400_000
    """Validation episodes are the seeds from here on."""
    rollout_video: bool = False
    """Keep a video of each validation's first episode in the run's `videos/`; SwanLab shows it."""
    use_swanlab: bool = False
    swanlab_project: str = "imf_ray"
    swanlab_mode: str = "online"
    """`online`, `offline` (to be sent later) or `local` (for a board on this machine); without a
    login `online` becomes `offline`."""

    def __post_init__(self) -> None:
        check_choice("train.device", self.device, ("cpu", "cuda"))
        check_choice("train.scheduler_type", self.scheduler_type, ("cosine", "constant"))
        check_choice("train.encoder_precision", self.encoder_precision, ("fp32", "bf16"))
        check_choice("train.swanlab_mode", self.swanlab_mode, ("online", "offline", "local"))
        check_min(
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
            gradient_accumulation_steps=1,
            diagnostics_freq=0,
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
        if self.keep_last_k < 2:
            raise UserError(
                f"train.keep_last_k={self.keep_last_k} must be at least 2: a single checkpoint is lost "
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
    """Training workers (ranks) of one run. `2..8` on the command line means at least 2 and at most
    8: the run goes on with fewer when machines are lost, and with more when they come back, from
    its last checkpoint (`train.save_freq`)."""
    min_workers: int | None = None
    """The least number of workers that a run goes on with; null is `num_workers`."""
    gpus_per_worker: float = 1.0
    """GPUs of one worker, used with `train.device=cuda`; trials may share one by fractions."""
    cpus_per_worker: float | None = None
    num_rollout_actors: int = 2
    """Simulators that run beside the training of one run."""
    cpus_per_rollout_actor: float | None = None
    gpus_per_rollout_actor: float = 1.0
    """GPUs of one simulator, used with `evaluate.device=cuda`."""
    node_pool_label: str | None = None
    """A label of the cluster's nodes that says what a node is for: workers run where it is `train`,
    simulators where it is `sim`, and readers where it is `data`; null runs everything anywhere."""
    autoscale_max_nodes: int | None = None
    """How many nodes, the head not counted, an autoscaling cluster (of pools: each) grows to. Runs
    and sweeps are planned for that, and nodes come when parts of them wait for a place. What nodes
    are like is seen from those that are there: one, of each pool, at least."""
    include_dashboard: bool = True
    """Serve Ray's dashboard on 127.0.0.1 when a cluster is started here."""

    def __post_init__(self) -> None:
        check_min("cluster", self, num_workers=1, num_rollout_actors=1)
        if self.autoscale_max_nodes is not None:
            check_min("cluster", self, autoscale_max_nodes=1)
        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            raise UserError(
                f"cluster.min_workers={self.min_workers} must lie between 1 and "
                f"cluster.num_workers={self.num_workers}."
            )
        given = ("gpus_per_worker", "cpus_per_worker")
        for key in (*given, "cpus_per_rollout_actor", "gpus_per_rollout_actor"):
            value = getattr(self, key)
            if value is not None and value <= 0.0:
                raise UserError(f"cluster.{key}={value} must be positive.")


@dataclass
class CollectConfig:
    """Scripted demonstrations."""

    num_episodes: int = 50
    seed: int = 0
    """Attempts are the seeds from here on; the successful ones are kept."""
    gzip_images: bool = False
    """Deflate the pictures: nothing is lost, files shrink to a sixth, and reading takes longer
    (docs/results/data.md)."""

    def __post_init__(self) -> None:
        check_min("collect", self, num_episodes=1, seed=0)


@dataclass
class EvaluateConfig:
    """Judging policies by rollouts: on which episodes, executed how, and what is kept of them."""

    num_episodes: int = 50
    seed: int = 500_000
    """Episodes are the seeds from here on."""
    stop_on_success: bool = False
    use_ema_weights: bool = True
    """Judge the averaged weights where the checkpoint has them."""
    num_action_steps: int | None = None
    """Actions of a chunk that are executed; null is the checkpoint's `agent.num_action_steps`."""
    inference_steps: int | None = None
    """Network calls for a chunk; null is the checkpoint's `agent.inference_steps`."""
    device: str = "cpu"
    """`cuda` gives each actor `cluster.gpus_per_rollout_actor` GPUs."""
    envs_per_actor: int = 4
    """Environments that share an actor and its agent; records do not depend on it."""
    inference_batch_size: int = 4
    """Rows of every call of the policy, filled up where fewer chunks are due. Part of the settings,
    since kernels, and so the last bits of an action, depend on it."""
    episode_timeout_s: float = 300.0
    """Own time after which an episode has failed."""
    allow_task_mismatch: bool = False
    """Judge in a task with other cameras, pictures, control rate or actions than trained in."""
    checkpoint_selection: str | None = None
    """`best-of-run`: `checkpoint` is a run; its checkpoints are compared on the seeds from
    `selection_seed`, and the best one is judged on the seeds from `seed`."""
    selection_seed: int = 450_000
    selection_episodes: int = 20
    video: str = "none"
    """A grid video of `all` episodes, failures first, of `failures`, or `none`."""
    max_video_episodes: int = 16
    """Episodes that the grid has at most."""
    save_trajectories: bool = False
    """Keep each episode's trajectory, and a picture with the path of the tools in red."""
    output_dir: str | None = None
    """Folder of the records; null is `evaluations/` beside the checkpoint."""

    def __post_init__(self) -> None:
        check_choice("evaluate.device", self.device, ("cpu", "cuda"))
        check_choice("evaluate.video", self.video, ("all", "failures", "none"))
        if self.checkpoint_selection is not None:
            check_choice(
                "evaluate.checkpoint_selection", self.checkpoint_selection, ("best-of-run",)
            )
        check_min(
            "evaluate",
            self,
            num_episodes=1,
            seed=0,
            envs_per_actor=1,
            inference_batch_size=1,
            selection_seed=0,
            selection_episodes=1,
            max_video_episodes=1,
        )
        for key in ("num_action_steps", "inference_steps"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"evaluate.{key}={value} must be at least 1.")
        if self.episode_timeout_s <= 0.0:
            raise UserError(
                f"evaluate.episode_timeout_s={self.episode_timeout_s} must be positive."
            )


@dataclass
class CompareConfig:
    """Comparing policies on the same episodes."""

    baselines: bool = True
    """Add the task's expert and the first policy untrained, so that the table has both ends."""
    output_dir: str | None = None
    """Folder of the comparison; null is `comparisons/` in `storage_path`."""


@dataclass
class TuneConfig:
    """The sweep."""

    max_concurrent_trials: int | None = None
    """Trials at a time; null is computed from the cluster."""
    min_cpus_per_trial: float = 1.0
    """CPUs that a trial is given at least when the slots of a CPU sweep are computed."""
