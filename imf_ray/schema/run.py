"""The commands' own sections: training, cluster, collection, evaluation, comparison, sweep."""

from __future__ import annotations

from dataclasses import dataclass

from imf_ray.errors import UserError
from imf_ray.schema.options import check_options, option

ROLLOUT_COMMANDS = ("evaluate", "compare", "train", "tune")
"""Commands that roll out policies; train and tune do so for validation."""


@dataclass
class TrainConfig:
    """Optimization, checkpoints and validation."""

    device: str = option(
        "cpu",
        "cuda gives each worker cluster.gpus_per_worker GPUs; cpu gives none.",
        choices=("cpu", "cuda"),
        sweepable=False,
    )
    seed: int = option(
        42, "Seed of weights, batch order, augmentation, noise and training times.", min=0
    )
    max_steps: int = option(150_000, "Optimizer steps of a run.", min=1)
    batch_size: int = option(80, "Samples in one global batch, over all workers.", min=1)
    lr: float = option(5e-4, "Peak learning rate of AdamW.", above=0.0)
    weight_decay: float = option(1e-5, "Weight decay of AdamW.", min=0.0)
    betas: list[float] = option([0.9, 0.95], "The two betas of AdamW, each in [0, 1).")
    grad_clip: float = option(
        1.0, "Largest gradient norm; larger gradients are scaled down to it.", above=0.0
    )
    scheduler_type: str = option(
        "cosine",
        "Learning rate after warm-up: cosine (falls to min_lr at max_steps) or constant.",
        choices=("cosine", "constant"),
    )
    warmup_steps: int = option(
        2000, "Steps over which the learning rate rises linearly to lr.", min=0
    )
    min_lr: float = option(1e-6, "Learning rate at the end of the cosine schedule.", min=0.0)
    ema: bool = option(
        True, "Keep an exponential moving average of the weights; validation evaluates it."
    )
    compile: bool = option(
        False,
        "Compile the image encoders and the loss with torch.compile: about twice as fast after "
        "some minutes, which are cached for later runs. Fixed for a run.",
    )
    encoder_precision: str = option(
        "fp32",
        "bf16 computes the image encoders in bfloat16 where the hardware supports it; everything "
        "else, and all of evaluation, stays in float32.",
        choices=("fp32", "bf16"),
    )
    gradient_accumulation_steps: int = option(
        1,
        "Micro-batches per optimizer step and worker, to save memory. Gradients are those of the "
        "whole batch.",
        min=1,
        resumable=True,
    )
    diagnostics_freq: int = option(
        0,
        "Steps between diagnostics: du/dt, the velocity error by interval length, and a plot of "
        "what each sub-layer reads (depth_weights.png). 0 never.",
        min=0,
        resumable=True,
    )
    val_split: float = option(
        0.1,
        "Fraction of the episodes held out for the action error.",
        min=0.0,
        below=1.0,
    )
    num_workers: int = option(
        2, "Ray Data read tasks per rank, not DDP workers.", min=1, resumable=True
    )
    log_freq: int = option(100, "Steps between lines of metrics.", min=1, resumable=True)
    log_sample_ids: bool = option(
        False,
        "Each worker writes the sample ids of every step to samples_rank_N.jsonl.",
        resumable=True,
    )
    save_freq: int = option(10_000, "Steps between checkpoints.", min=1, resumable=True)
    keep_last_k: int = option(
        2,
        "Newest checkpoints that are kept, in addition to the best one; at least 2.",
        min=2,
        reason="a single checkpoint is lost when its successor is written badly",
        resumable=True,
    )
    max_failures: int = option(
        3,
        "Restarts in a row without a new checkpoint in between, after a worker dies; each resumes "
        "from the newest checkpoint. A run whose loss is not finite ends at once.",
        min=0,
        resumable=True,
    )
    rollout_val_freq_epochs: int = option(
        0, "Epochs between validations by rollouts; 0 never.", min=0, sweepable=False
    )
    rollout_validate_on_checkpoint: bool = option(
        False, "Validate every checkpoint by rollouts.", sweepable=False
    )
    rollout_num_episodes: int = option(10, "Episodes of one validation.", min=1, sweepable=False)
    rollout_seed: int = option(
        400_000, "Seed of the first validation episode; the others follow.", min=0, sweepable=False
    )
    rollout_video: bool = option(
        False,
        "Save a video of each validation's first episode in the run's videos/; SwanLab shows it.",
        resumable=True,
        sweepable=False,
    )
    use_swanlab: bool = option(False, "Log metrics to SwanLab.", resumable=True)
    swanlab_project: str = option("imf_ray", "Name of the SwanLab project.", resumable=True)
    swanlab_mode: str = option(
        "online",
        "online, offline (upload later) or local (a board on this machine). Without a login, "
        "online becomes offline.",
        choices=("online", "offline", "local"),
        resumable=True,
    )

    def __post_init__(self) -> None:
        check_options("train", self)
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise UserError(f"train.betas={self.betas} must be two numbers in [0, 1).")


@dataclass
class ClusterConfig:
    """Resources that each part takes from the Ray cluster; null is computed from its size."""

    address: str | None = option(
        None,
        "Running cluster to connect to: auto or HOST:PORT. null uses RAY_ADDRESS, or starts a "
        "cluster on this machine.",
    )
    num_cpus: float | None = option(
        None, "Logical CPUs of a cluster started here; null uses the machine's."
    )
    num_gpus: float | None = option(
        None, "Logical GPUs of a cluster started here; null uses the machine's."
    )
    num_workers: int = option(
        1,
        "Training workers (DDP ranks) of a run. 2..8 on the command line makes the run elastic: "
        "at least 2 and at most 8. It continues from its last checkpoint (train.save_freq) with "
        "fewer workers when machines are lost, and with more when they return.",
        min=1,
    )
    min_workers: int | None = option(
        None, "Least number of workers of an elastic run; null is num_workers."
    )
    gpus_per_worker: float = option(
        1.0,
        "GPUs of a worker with train.device=cuda; fractions let trials share a GPU.",
        above=0.0,
    )
    cpus_per_worker: float | None = option(
        None, "CPUs of a worker; null is computed from the cluster's size.", above=0.0
    )
    num_rollout_actors: int = option(
        2, "Rollout actors; with training, those of each run's validation.", min=1
    )
    cpus_per_rollout_actor: float | None = option(
        None, "CPUs of a rollout actor; null is computed from the cluster's size.", above=0.0
    )
    gpus_per_rollout_actor: float = option(
        1.0, "GPUs of a rollout actor with evaluate.device=cuda.", above=0.0
    )
    node_pool_label: str | None = option(
        None,
        "Ray node label that names a node's pool: training workers run on nodes with the value "
        "train, rollout actors on sim, read tasks on data. null uses any node.",
    )
    autoscale_max_nodes: int | None = option(
        None,
        "Nodes, without the head, that an autoscaling cluster grows to; with pools, nodes of each "
        "pool. Runs and sweeps are sized for them. Pending nodes are assumed to be like present "
        "ones, so at least one node (of each pool) must be up. null does not scale.",
        min=1,
    )
    include_dashboard: bool = option(
        True, "Serve Ray's dashboard on 127.0.0.1 for a cluster started here."
    )

    def __post_init__(self) -> None:
        check_options("cluster", self)
        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            raise UserError(
                f"cluster.min_workers={self.min_workers} must lie between 1 and "
                f"cluster.num_workers={self.num_workers}."
            )


@dataclass
class CollectConfig:
    """Scripted demonstrations."""

    num_episodes: int = option(50, "Successful episodes that the data set should have.", min=1)
    seed: int = option(
        0, "Seed of the first attempt; the others follow. Successful attempts are kept.", min=0
    )
    gzip_images: bool = option(
        False,
        "Compress the images without loss: files shrink to a sixth, and reading takes longer "
        "(docs/results/data.md).",
    )

    def __post_init__(self) -> None:
        check_options("collect", self)


@dataclass
class EvaluateConfig:
    """Evaluation of policies by rollouts: episodes, execution and saved files."""

    num_episodes: int = option(50, "Episodes of an evaluation.", min=1)
    seed: int = option(500_000, "Seed of the first episode; the others follow.", min=0)
    stop_on_success: bool = option(
        False,
        "End an episode at its first success.",
        resumable=False,
        commands=ROLLOUT_COMMANDS,
    )
    use_ema_weights: bool = option(
        True,
        "Evaluate the averaged weights if the checkpoint has them.",
        resumable=False,
        commands=ROLLOUT_COMMANDS,
    )
    num_action_steps: int | None = option(
        None,
        "Actions of a chunk that are executed; null is the checkpoint's agent.num_action_steps.",
        min=1,
        resumable=False,
        commands=ROLLOUT_COMMANDS,
    )
    inference_steps: int | None = option(
        None,
        "Network calls for one chunk; null is the checkpoint's agent.inference_steps.",
        min=1,
        resumable=False,
        commands=ROLLOUT_COMMANDS,
    )
    device: str = option(
        "cpu",
        "cuda gives each rollout actor cluster.gpus_per_rollout_actor GPUs; cpu gives none.",
        choices=("cpu", "cuda"),
        commands=ROLLOUT_COMMANDS,
    )
    envs_per_actor: int = option(
        4,
        "Environments that share an actor and its policy. Results do not depend on it.",
        min=1,
        commands=ROLLOUT_COMMANDS,
    )
    inference_batch_size: int = option(
        4,
        "Rows of every call of the policy, padded when fewer chunks are due. Records of another "
        "value are not reused: kernels, and so an action's last bits, depend on it.",
        min=1,
        resumable=False,
        commands=ROLLOUT_COMMANDS,
    )
    episode_timeout_s: float = option(
        300.0,
        "Seconds of computation after which an episode counts as failed.",
        above=0.0,
        commands=ROLLOUT_COMMANDS,
    )
    allow_task_mismatch: bool = option(
        False,
        "Allow a task with other cameras, images, control rate or actions than in training.",
    )
    checkpoint_selection: str | None = option(
        None,
        "best-of-run takes a run as checkpoint=: it compares the run's checkpoints on the seeds "
        "from selection_seed, and evaluates the best on the seeds from seed. null evaluates "
        "checkpoint= itself.",
        choices=("best-of-run",),
        commands=("evaluate",),
    )
    selection_seed: int = option(
        450_000,
        "Seed of the first episode on which checkpoints are compared.",
        min=0,
        commands=("evaluate",),
    )
    selection_episodes: int = option(
        20, "Episodes on which each checkpoint is compared.", min=1, commands=("evaluate",)
    )
    video: str = option(
        "none",
        "Grid video of all episodes (failures first), of failures only, or none.",
        choices=("all", "failures", "none"),
        commands=("evaluate",),
    )
    max_video_episodes: int = option(
        16, "Most episodes in the grid video.", min=1, commands=("evaluate",)
    )
    save_trajectories: bool = option(
        False, "Save each episode's trajectory and an image with the path of the tools in red."
    )
    output_dir: str | None = option(
        None,
        "Folder of the records; null is evaluations/ next to the checkpoint.",
        commands=("evaluate",),
    )

    def __post_init__(self) -> None:
        check_options("evaluate", self)


@dataclass
class CompareConfig:
    """Comparison of policies on the same episodes."""

    baselines: bool = option(
        True, "Add the task's scripted expert and the first policy with untrained weights."
    )
    output_dir: str | None = option(
        None, "Folder of the comparison; null is comparisons/ in storage_path."
    )


@dataclass
class TuneConfig:
    """Concurrency of a sweep."""

    max_concurrent_trials: int | None = option(
        None, "Trials at a time; null is computed from the cluster's size."
    )
    min_cpus_per_trial: float = option(
        1.0, "Least CPUs of a trial, for computing how many trials of a CPU sweep run at a time."
    )
