"""One training run, from its configuration to Ray Train's `TorchTrainer`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train import (
    CheckpointConfig,
    FailureConfig,
    ScalingConfig,
    ValidationConfig,
    ValidationTaskConfig,
)
from ray.train.torch import TorchConfig, TorchTrainer

from imf_ray.agents.initial_weights import InitialWeights, policy_digest, read_initial_weights
from imf_ray.agents.pretrained import make_meta_agent
from imf_ray.allocation import RunResources
from imf_ray.bundled import policy_dir
from imf_ray.cluster import DATA_POOL, TRAIN_POOL, label_selector
from imf_ray.data.pipeline import TrainDataset
from imf_ray.data.sampling import SamplePlan
from imf_ray.data.statistics import compute_statistics
from imf_ray.data.windows import window_spec_from_config
from imf_ray.errors import UserError
from imf_ray.metrics_export import run_tags
from imf_ray.rollout.rollout_config import agent_rollout_config
from imf_ray.schema import Config
from imf_ray.storage import check_free_space
from imf_ray.training.fault_tolerance import (
    FaultTolerantTorchTrainer,
    OrphanedPlacementGroupCleanup,
    find_user_error,
    fit_with_controller_restarts,
)
from imf_ray.training.loop import WORKER_CONFIG_KEY, WorkerConfig, train_worker
from imf_ray.training.run_config import make_run_config
from imf_ray.training.run_dir import RunDir
from imf_ray.training.run_identity import PreparedRun, init_or_verify_run_dir, load_run
from imf_ray.training.run_records import InitRecord
from imf_ray.training.tracking import check_tracking
from imf_ray.training.validation import check_validation, validate

CONTROLLER_FAILURE_LIMIT, ELASTIC_FAILURE_LIMIT = 30, 1
"""Number of 60-second placement timeouts that Ray tolerates before it reports a controller failure.

The first is for a fixed number of workers. The second is for an elastic run, which then asks for
fewer workers."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOutcome:
    """Outcome of a run."""

    run_dir: RunDir
    swanlab_run: str | None
    stopped: bool
    """True if a stop request ended the run before its last training step."""


def prepare_run(config: Config) -> PreparedRun:
    """Check a configuration and its data before training starts.

    Raises:
        UserError: the data, the agent's options or the batch size are invalid, the configured
            SwanLab mode is not installed, or the agent cannot act in the env of its validation.
        StorageError: the disk is full.
    """
    check_free_space(config.storage_path)
    check_tracking(config)
    make_meta_agent(config.agent, config.task.action_space)  # checks the agent's options
    agent_rollout_config(config, config.train.rollout_seed)
    if config.train.validates:
        check_validation(config)
    return load_run(config)


def starting_weights(config: Config, run_dir: RunDir) -> InitialWeights | None:
    """Read the weights that a new run starts with, see `read_initial_weights`.

    Call this before Ray starts. Returns None if all weights start untrained, or if the run resumes
    from a checkpoint.

    Raises:
        UserError: the weights cannot be read or do not fit, or the run was started with others.
    """
    is_resumed = run_dir.newest_step() is not None
    source, before = config.train.init_from, run_dir.read_init_record()
    if source is not None and before is not None:
        # The policy may be gone by then. Another path must have the same weights.
        is_gone = is_resumed and source == before.source and not policy_dir(source).exists()
        if not is_gone and policy_digest(source) != before.digest:
            raise UserError(
                f"The run {run_dir} was started with the weights of {before.source}, and those of "
                f"train.init_from={source} are others. Choose another run_name, or set "
                "train.init_from to a copy of that policy."
            )
    return None if is_resumed else read_initial_weights(config)


def fit(
    run: PreparedRun,
    run_dir: RunDir,
    resources: RunResources,
    callbacks: Sequence[Any] = (),
    initial: InitialWeights | None = None,
    varied: Sequence[str] = (),
) -> RunOutcome:
    """Train in `run_dir`, or resume there from the newest valid checkpoint.

    Args:
        callbacks: callbacks of Ray Train's controller.
        initial: see `starting_weights`.
        varied: names of the options that differ between the trials of the run's sweep.

    Raises:
        UserError: the folder belongs to a run with another configuration, or training failed
            because of its input.
        ray.train.TrainingFailedError: training failed for another reason.
    """
    config = run.config
    run_dir.download()
    plan = init_or_verify_run_dir(run, run_dir)
    if initial is not None and initial.digest is not None:
        run_dir.write_init_record(
            InitRecord(
                initial.source,
                config.train.init_parts,
                initial.digest,
                list(initial.untrained),
            )
        )
    _warn_uneven_shards(plan, config.cluster.num_workers)
    reads_images = not config.agent.has_fixed_features  # otherwise see `FeatureStore`
    spec = window_spec_from_config(config, images=reads_images)
    dataset = TrainDataset(
        name=run_dir.name,
        metric_tags=run_tags(run_dir.path),
        plan=plan,
        spec=spec,
        episodes=tuple(episode.ref for episode in run.train.episodes),
        frame_bytes=len(spec.fields.cameras) * 3 * config.task.image_size**2,
        max_steps=config.train.max_steps,
        read_concurrency=config.train.num_workers,
        options=label_selector(resources.node_pool_label, DATA_POOL),
    )
    worker_config = WorkerConfig(
        config=config,
        run_dir=run_dir,
        dataset=dataset,
        statistics=compute_statistics(run.train.episodes, spec.fields),
        cpus=resources.cpus_per_worker,
        initial_weights=None if initial is None else ray.put(initial),
        num_skipped_episodes=len(run.train.skipped),
        varied=varied,
    )
    validation = ValidationTaskConfig(
        fn_kwargs={
            "run_dir": run_dir,
            "config": config,
            "val_episodes": [episode.ref for episode in run.val.episodes],
            "rollout": resources.rollout,
        }
    )
    failure_config = FailureConfig(
        max_failures=config.train.max_failures,
        controller_failure_limit=(
            ELASTIC_FAILURE_LIMIT if resources.is_elastic else CONTROLLER_FAILURE_LIMIT
        ),
    )

    def make_trainer(max_workers: int) -> TorchTrainer:
        return FaultTolerantTorchTrainer(
            run_dir,
            train_worker,
            train_loop_config={WORKER_CONFIG_KEY: worker_config},
            torch_config=TorchConfig(backend="nccl" if config.train.device == "cuda" else "gloo"),
            scaling_config=scaling_config(dataclasses.replace(resources, max_workers=max_workers)),
            run_config=make_run_config(
                run_dir,
                failure_config=failure_config,
                checkpoint_config=CheckpointConfig(num_to_keep=None),  # the loop prunes them
                callbacks=[*callbacks, OrphanedPlacementGroupCleanup(run_dir)],
            ),
            validation_config=ValidationConfig(
                validate,
                validation,
                ray_remote_kwargs={
                    "num_cpus": 0,
                    "max_retries": -1,
                    "name": f"validation of {run_dir.name}",
                },
            ),
        )

    try:
        result = fit_with_controller_restarts(
            make_trainer, run_dir, resources, config.train.max_failures
        )
    except ray.train.TrainingFailedError as error:
        cause = find_user_error(error)
        if cause is not None:
            raise UserError(f"Training stopped: {cause}") from error
        raise
    run_dir.download()
    outcome = result.return_value or {}
    return RunOutcome(
        run_dir,
        swanlab_run=outcome.get("swanlab_run"),
        stopped=outcome.get("stopped", False),
    )


def scaling_config(resources: RunResources) -> ScalingConfig:
    """Return the resources that Ray Train reserves for the workers of a run."""
    per_worker = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    return ScalingConfig(
        num_workers=(
            (resources.min_workers, resources.max_workers)
            if resources.is_elastic
            else resources.max_workers
        ),
        use_gpu=resources.gpus_per_worker > 0,
        resources_per_worker=per_worker,
        **label_selector(resources.node_pool_label, TRAIN_POOL),
    )


def _warn_uneven_shards(plan: SamplePlan, num_workers: int) -> None:
    if plan.virtual_shards % num_workers:
        log.warning(
            "%d virtual shards are not divisible by %d workers: workers with fewer shards wait for "
            "the others. For equal shards, set data.virtual_shards=N in a new run, N a multiple of "
            "the workers.",
            plan.virtual_shards,
            num_workers,
        )


def enable_validation(config: Config) -> Config:
    """Return a configuration that validates every checkpoint, unless it validates already."""
    if config.train.validates:
        return config
    train = dataclasses.replace(config.train, rollout_validate_on_checkpoint=True)
    return dataclasses.replace(config, train=train)
