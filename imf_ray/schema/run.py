"""The sections of training, cluster, collection, evaluation, comparison and sweeps."""

from __future__ import annotations

from dataclasses import dataclass

from imf_ray.errors import UserError
from imf_ray.schema.options import check_options, option

ROLLOUT_COMMANDS = ("evaluate", "compare", "train", "tune")
"""Commands that roll out policies. train and tune do so for validation."""
MAX_SEED = 2.0**63
"""Seeds are below this number, the limit of torch."""


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
        42,
        "Seed of the initial weights, batch order, augmentation, noise and training times.",
        min=0,
        below=MAX_SEED,
    )
    max_steps: int = option(150_000, "Number of training steps of a run.", min=1)
    batch_size: int = option(80, "Number of samples in one batch, over all workers.", min=1)
    lr: float = option(5e-4, "Peak learning rate of AdamW.", above=0.0)
    weight_decay: float = option(1e-5, "Weight decay of AdamW.", min=0.0)
    betas: list[float] = option([0.9, 0.95], "The two betas of AdamW, each in [0, 1).")
    grad_clip: float = option(
        1.0, "Maximum gradient norm. Larger gradients are scaled down to it.", above=0.0
    )
    scheduler_type: str = option(
        "cosine",
        "Learning rate after warm-up: cosine (falls to min_lr at max_steps) or constant.",
        choices=("cosine", "constant"),
    )
    warmup_steps: int = option(
        2000, "Number of training steps in which the learning rate rises linearly to lr.", min=0
    )
    min_lr: float = option(1e-6, "Learning rate at the end of the cosine schedule.", min=0.0)
    ema: bool = option(
        True, "Keep an exponential moving average (EMA) of the weights. Validation evaluates it."
    )
    init_from: str | None = option(
        None,
        "Policy whose weights a new run starts with: a checkpoint folder, its URL or "
        "policies/NAME. EMA weights are used if it has them, and normalization statistics never. "
        "null starts untrained, or with agent.vision_backbone.pretrained_backbone_weights.",
        is_path=True,
        resumable=True,
    )
    init_parts: str = option(
        "all",
        "Weights that init_from gives: all, or encoders (the image encoders, without projection "
        "and head). Names and shapes must be those of this agent.",
        choices=("all", "encoders"),
    )
    compile: bool = option(
        False,
        "Compile the image encoders and the loss with torch.compile. Training is then about twice "
        "as fast. Compiling takes some minutes and is cached for later runs.",
    )
    encoder_precision: str = option(
        "fp32",
        "bf16 computes the image encoders in bfloat16 if the hardware supports it. Everything "
        "else, and all of evaluation, is computed in float32.",
        choices=("fp32", "bf16"),
    )
    gradient_accumulation_steps: int = option(
        1,
        "Number of micro-batches per training step and worker. More micro-batches save memory. The "
        "gradients are those of the whole batch.",
        min=1,
        resumable=True,
    )
    diagnostics_freq: int = option(
        0,
        "Number of training steps between diagnostics: du/dt, the velocity error by length of the "
        "time interval, and a plot of the sub-layers' depth weights (depth_weights.png). 0 "
        "disables them.",
        min=0,
        resumable=True,
    )
    val_split: float = option(
        0.1,
        "Fraction of the episodes that are held out of training for the action error.",
        min=0.0,
        below=1.0,
    )
    num_workers: int = option(
        2,
        "Number of Ray Data read tasks per training worker. cluster.num_workers sets the number of "
        "training workers.",
        min=1,
        resumable=True,
    )
    log_freq: int = option(
        100, "Number of training steps between lines of metrics.", min=1, resumable=True
    )
    log_sample_ids: bool = option(
        False,
        "Write the sample ids of every training step to samples_rank_N.jsonl, one per worker.",
        resumable=True,
    )
    save_freq: int = option(
        10_000, "Number of training steps between checkpoints.", min=1, resumable=True
    )
    keep_last_k: int = option(
        2,
        "Number of newest checkpoints to keep, in addition to the best one. The minimum is 2.",
        min=2,
        reason="with one checkpoint, a damaged write would leave the run without any",
        resumable=True,
    )
    max_failures: int = option(
        3,
        "Maximum number of restarts in a row without a new checkpoint in between. The run restarts "
        "from its newest checkpoint when a worker dies. A run whose loss is not finite ends "
        "immediately.",
        min=0,
        resumable=True,
    )
    rollout_val_freq_epochs: int = option(
        0,
        "Number of epochs between validations by rollouts. 0 disables them.",
        min=0,
        sweepable=False,
    )
    rollout_validate_on_checkpoint: bool = option(
        False,
        "Validate every checkpoint by rollouts, or with task=none by the action error alone.",
        sweepable=False,
    )
    rollout_num_episodes: int = option(
        10, "Number of episodes of one validation.", min=1, sweepable=False
    )
    rollout_seed: int = option(
        400_000,
        "Seed of the first validation episode. The other episodes have the next seeds.",
        min=0,
        below=MAX_SEED,
        sweepable=False,
    )
    rollout_video: bool = option(
        False,
        "Save a video of each validation's first episode in the run's videos/, and log it to "
        "SwanLab and TensorBoard if they are used.",
        resumable=True,
        sweepable=False,
    )
    board: bool = option(
        False,
        "Serve the live page of the run or sweep while it runs, as `imf-ray board` does, and print "
        "its address.",
        resumable=True,
        sweepable=False,
    )
    use_swanlab: bool = option(
        False, "Log metrics to SwanLab, an experiment tracker.", resumable=True
    )
    swanlab_project: str = option("imf_ray", "Name of the SwanLab project.", resumable=True)
    swanlab_mode: str = option(
        "online",
        "online, offline (upload later) or local (a dashboard on this machine). Without a login, "
        "online becomes offline.",
        choices=("online", "offline", "local"),
        resumable=True,
    )
    tensorboard: bool = option(
        False,
        "Log metrics for TensorBoard in the run's tensorboard/. It needs the package tensorboard.",
        resumable=True,
    )

    def __post_init__(self) -> None:
        check_options("train", self)
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise UserError(f"train.betas={self.betas} must be two numbers in [0, 1).")

    @property
    def validates(self) -> bool:
        """True if checkpoints are validated by rollouts, among them the last one."""
        return self.rollout_val_freq_epochs > 0 or self.rollout_validate_on_checkpoint


@dataclass
class ClusterConfig:
    """The Ray cluster, and the resources that each part of a run takes from it."""

    address: str | None = option(
        None,
        "Address of a running cluster: auto or HOST:PORT. local starts a cluster on this machine. "
        "null uses RAY_ADDRESS if it is set, and otherwise local.",
    )
    num_cpus: float | None = option(
        None,
        "Logical CPUs of a cluster that is started on this machine. null uses all its CPUs.",
    )
    num_gpus: float | None = option(
        None,
        "Logical GPUs of a cluster that is started on this machine. null uses all its GPUs.",
    )
    num_workers: int = option(
        1,
        "Number of training workers (DDP ranks) of a run. 2..8 on the command line makes the run "
        "elastic, with at least 2 and at most 8 workers. It resumes from its newest checkpoint "
        "(train.save_freq) with fewer workers when machines are lost, and with more when they "
        "return.",
        min=1,
    )
    min_workers: int | None = option(
        None, "Minimum number of workers of an elastic run. null uses num_workers."
    )
    gpus_per_worker: float = option(
        1.0,
        "GPUs of a worker with train.device=cuda. With a fraction, trials share a GPU.",
        above=0.0,
    )
    cpus_per_worker: float | None = option(
        None, "CPUs of a worker. null computes them from the cluster's size.", above=0.0
    )
    num_rollout_actors: int = option(
        2, "Number of rollout actors for the validation of each training run.", min=1
    )
    cpus_per_rollout_actor: float | None = option(
        None, "CPUs of a rollout actor. null computes them from the cluster's size.", above=0.0
    )
    gpus_per_rollout_actor: float = option(
        1.0, "GPUs of a rollout actor with evaluate.device=cuda.", above=0.0
    )
    node_pool_label: str | None = option(
        None,
        "Ray node label that names a node's pool. Training workers run on nodes with the value "
        "train, rollout actors on sim, and read tasks on data. null uses any node for any of them.",
    )
    autoscale_max_nodes: int | None = option(
        None,
        "Maximum number of nodes of an autoscaling cluster without its head, or of each pool. Runs "
        "and sweeps are sized for this number. Pending nodes are assumed to be like current ones, "
        "so at least one node (of each pool) must be running. null uses only current nodes.",
        min=1,
    )
    include_dashboard: bool = option(
        True, "Serve Ray's dashboard on 127.0.0.1 for a cluster that is started on this machine."
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
    """Recording of scripted demonstrations."""

    num_episodes: int = option(50, "Number of successful episodes to have in the data set.", min=1)
    seed: int = option(
        0,
        "Seed of the first attempt. The other attempts have the next seeds. Only successful "
        "attempts are kept.",
        min=0,
        below=MAX_SEED,
    )
    gzip_images: bool = option(
        False,
        "Compress the images without loss. Files shrink to a sixth of their size, but reading "
        "takes longer (docs/results/data.md).",
    )

    def __post_init__(self) -> None:
        check_options("collect", self)


@dataclass
class EvaluateConfig:
    """Evaluation of policies by rollouts: episodes, execution settings and saved files."""

    num_episodes: int = option(50, "Number of episodes of an evaluation.", min=1)
    seed: int = option(
        500_000,
        "Seed of the first episode. The other episodes have the next seeds.",
        min=0,
        below=MAX_SEED,
    )
    stop_on_success: bool = option(
        False,
        "End an episode at its first success.",
        resumable=False,
        commands=ROLLOUT_COMMANDS,
    )
    use_ema_weights: bool = option(
        True,
        "Evaluate the averaged (EMA) weights if the checkpoint has them.",
        resumable=False,
        commands=ROLLOUT_COMMANDS,
    )
    num_action_steps: int | None = option(
        None,
        "Number of actions of a chunk that are executed. null uses the checkpoint's "
        "agent.num_action_steps.",
        min=1,
        resumable=False,
        commands=ROLLOUT_COMMANDS,
    )
    inference_steps: int | None = option(
        None,
        "Number of network calls for one chunk. null uses the checkpoint's agent.inference_steps.",
        min=1,
        resumable=False,
        commands=ROLLOUT_COMMANDS,
    )
    device: str = option(
        "cpu",
        "cuda gives each rollout actor cluster.gpus_per_rollout_actor GPUs; cpu gives none.",
        choices=("cpu", "cuda"),
        commands=(*ROLLOUT_COMMANDS, "collect"),
    )
    envs_per_actor: int = option(
        4,
        "Number of environments per rollout actor. Results do not depend on it.",
        min=1,
        commands=ROLLOUT_COMMANDS,
    )
    inference_batch_size: int = option(
        4,
        "Number of rows of every call of the policy. Missing rows are padded. Records of another "
        "value are not reused, because kernels, and so an action's last bits, depend on it.",
        min=1,
        resumable=False,
        commands=ROLLOUT_COMMANDS,
    )
    episode_timeout_s: float = option(
        300.0,
        "Maximum computing time of an episode in seconds. After that it counts as failed.",
        above=0.0,
        commands=ROLLOUT_COMMANDS,
    )
    allow_task_mismatch: bool = option(
        False,
        "Allow a task whose environment, cameras, images or control rate differ from training. The "
        "policy must still be able to act in it (docs/environments.md).",
    )
    checkpoint_selection: str | None = option(
        None,
        "best-of-run requires checkpoint=RUN, the folder of a run. It compares the run's "
        "checkpoints on the seeds from selection_seed, and evaluates the best one on the seeds "
        "from seed. null evaluates checkpoint= itself.",
        choices=("best-of-run",),
        commands=("evaluate",),
    )
    selection_seed: int = option(
        450_000,
        "Seed of the first episode on which checkpoints are compared.",
        min=0,
        below=MAX_SEED,
        commands=("evaluate",),
    )
    selection_episodes: int = option(
        20,
        "Number of episodes on which each checkpoint is compared.",
        min=1,
        commands=("evaluate",),
    )
    video: str = option(
        "none",
        "Make a grid video of all episodes (failures first), of failures only, or none.",
        choices=("all", "failures", "none"),
        commands=("evaluate",),
    )
    max_video_episodes: int = option(
        16, "Maximum number of episodes in the grid video.", min=1, commands=("evaluate",)
    )
    save_trajectories: bool = option(
        False,
        "Save each episode's trajectory and an image with the paths of the end effectors in red.",
    )
    output_dir: str | None = option(
        None,
        "Folder of the records. null uses a folder in evaluations/ next to the checkpoint folder.",
        is_path=True,
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
        None,
        "Folder of the comparison. null uses a folder in comparisons/ in storage_path.",
        is_path=True,
    )


@dataclass
class TuneConfig:
    """Concurrency of the trials of a sweep."""

    max_concurrent_trials: int | None = option(
        None,
        "Maximum number of trials that run at a time. null computes it from the cluster's size.",
    )
    min_cpus_per_trial: float = option(
        1.0,
        "Minimum number of CPUs of a trial. It limits the number of trials that run at a time if "
        "train.device=cpu.",
    )
