"""One run from its configuration: checks, plan, and the TorchTrainer that carries it out."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray.train
from omegaconf import OmegaConf
from ray.exceptions import RayActorError
from ray.train import (
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    ValidationConfig,
    ValidationTaskConfig,
)
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from imf_ray.agents.pretrained import CONFIG_FILE, make_agent
from imf_ray.allocation import RunResources
from imf_ray.cluster import DATA_POOL, TRAIN_POOL, label_selector
from imf_ray.config import config_from_dict, config_to_dict, to_yaml
from imf_ray.data.episodes import EpisodeRef
from imf_ray.data.index import EpisodeIndex, build_index
from imf_ray.data.pipeline import DATASET_NAME, PerRankDataConfig, TrainDataset
from imf_ray.data.sampling import SamplePlan, choose_virtual_shards
from imf_ray.data.statistics import compute_statistics
from imf_ray.errors import UserError
from imf_ray.files import retry_io, write_if_changed
from imf_ray.rollout.rollout_config import agent_rollout_config
from imf_ray.schema import Config, resumable_options
from imf_ray.storage import delete, display_path, download, exists, parse_path, remote_path
from imf_ray.training.checkpoint import (
    DATA_MANIFEST_FILE,
    download_run,
    newest_checkpoint,
)
from imf_ray.training.failures import CheckpointProgress, find_user_error
from imf_ray.training.loop import WorkerConfig, train_worker
from imf_ray.training.placement import FaultTolerantTorchTrainer, OrphanedPlacementGroupCleanup
from imf_ray.training.tracking import check_tracking
from imf_ray.training.validation import validate, window_spec

log = logging.getLogger(__name__)
CONTROLLER_FAILURE_LIMIT = 30
"""Workers that find no place in a minute count as one failure. So often, it is told."""
ELASTIC_FAILURE_LIMIT = 1
"""So often, an elastic run waits for more workers than may find a place, before it takes fewer."""
VAL_EPISODES_KEY = "held_out_files"
RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"


@dataclass(frozen=True)
class PreparedRun:
    """A configuration that was checked together with its data."""

    config: Config
    train: EpisodeIndex
    held: EpisodeIndex
    plan: SamplePlan

    def describe(self) -> str:
        """One line on the data and the length of the run."""
        epochs = self.config.train.max_steps / self.plan.steps_per_epoch
        skipped = f", {len(self.train.skipped)} bad ones skipped" if self.train.skipped else ""
        return (
            f"{len(self.train.episodes)} episodes to train on, {len(self.held.episodes)} held out"
            f"{skipped}; {self.plan.num_samples} samples, {self.plan.steps_per_epoch} steps an "
            f"epoch, {self.config.train.max_steps} steps = {epochs:.1f} epochs"
        )


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended."""

    run_dir: Path
    swanlab_run: str | None
    stopped: bool
    """Whether it was asked to stop before its last step."""


def prepare_run(config: Config) -> PreparedRun:
    """Check everything that can be wrong before anything starts.

    Raises:
        UserError: bad data, an impossible agent or batch, or a tracker that is not installed.
    """
    check_tracking(config)
    make_agent(config.agent, config.task.action_space)
    agent_rollout_config(config, config.train.rollout_seed)
    train, held = build_index(config).split(config.train.val_split, config.train.seed)
    plan = SamplePlan(
        lengths=tuple(episode.length for episode in train.episodes),
        batch_size=config.train.batch_size,
        virtual_shards=choose_virtual_shards(
            config.train.batch_size, config.cluster.num_workers, config.data.virtual_shards
        ),
        read_block_steps=config.data.read_block_steps,
        shuffle_buffer_blocks=config.data.shuffle_buffer_blocks,
        seed=config.train.seed,
    )
    return PreparedRun(config, train, held, plan)


def fit(
    run: PreparedRun, run_dir: Path, resources: RunResources, callbacks: Sequence[Any] = ()
) -> RunOutcome:
    """Train in `run_dir`, or go on there from the newest valid checkpoint.

    Args:
        callbacks: of Ray Train, in its controller.

    Raises:
        UserError: the folder holds a run of another configuration, or training failed because of
            its input.
        ray.train.TrainingFailedError: it failed for another reason.
    """
    config = run.config
    retry_io(lambda: download_run(run_dir))
    plan = retry_io(lambda: init_or_verify_run_dir(run, run_dir))
    _warn_uneven_shards(plan, config.cluster.num_workers)
    spec = window_spec(config)
    statistics = compute_statistics(run.train.episodes, spec.fields)
    stream = TrainDataset(
        plan=plan,
        spec=spec,
        episodes=tuple(episode.ref for episode in run.train.episodes),
        frame_bytes=len(config.agent.camera_names) * 3 * config.task.image_size**2,
        max_steps=config.train.max_steps,
        read_concurrency=config.train.num_workers,
        options=label_selector(resources.node_pool_label, DATA_POOL),
    )
    payload = WorkerConfig(
        config_to_dict(config), str(run_dir), stream, statistics, len(run.train.skipped)
    )
    validation = ValidationTaskConfig(
        fn_kwargs={
            "run_dir": payload.run_dir,
            "config": payload.config,
            "held_out": [episode.ref for episode in run.held.episodes],
            "rollout": resources.rollout,
        }
    )

    def make_trainer(workers: int) -> TorchTrainer:
        return FaultTolerantTorchTrainer(
            run_dir,
            train_worker,
            train_loop_config={"payload": payload, "cpus": resources.cpus_per_worker},
            torch_config=TorchConfig(backend="nccl" if config.train.device == "cuda" else "gloo"),
            scaling_config=scaling_config(dataclasses.replace(resources, max_workers=workers)),
            run_config=RunConfig(
                name=run_dir.name,
                **_ray_storage_kwargs(run_dir),
                failure_config=FailureConfig(
                    max_failures=config.train.max_failures,
                    controller_failure_limit=(
                        ELASTIC_FAILURE_LIMIT if resources.is_elastic else CONTROLLER_FAILURE_LIMIT
                    ),
                ),
                checkpoint_config=CheckpointConfig(num_to_keep=None),  # the loop prunes them
                callbacks=[*callbacks, OrphanedPlacementGroupCleanup(run_dir)],
            ),
            datasets={DATASET_NAME: stream},  # read by PlannedDataConfig
            dataset_config=PerRankDataConfig(lambda: _start_step(run_dir)),
            validation_config=ValidationConfig(
                validate, validation, ray_remote_kwargs={"num_cpus": 0, "max_retries": -1}
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
    retry_io(lambda: download_run(run_dir))
    ended = result.return_value or {}
    return RunOutcome(
        run_dir,
        swanlab_run=ended.get("swanlab_run"),
        stopped=ended.get("stopped", False),
    )


def fit_with_controller_restarts(
    make_trainer: Callable[[int], TorchTrainer],
    run_dir: Path,
    resources: RunResources,
    max_failures: int,
) -> ray.train.Result:
    """Train; where Ray's controller died or could not write, begin again with a new one.

    It keeps a list of checkpoints of its own, and counts a failure to write that (a full disk, a
    network, with the exceptions of its file system), or a worker that dies as it is given its task,
    as a failure of its own code. It says nothing of the training. Nor does waiting for a node to
    come or to come back, which takes as long as it takes. Failures count from the last checkpoint
    on. An elastic run may wait for more workers
    than there is room for, since Ray counts what others hold, and nodes of other pools, as free
    (2.60): it then asks for fewer, and grows no further unless it is begun again.

    Args:
        make_trainer: of the most workers that it may have.

    Raises:
        ray.train.TrainingFailedError: training failed, or the controller too often.
        ray.exceptions.RayActorError: the controller died too often.
    """
    workers, failures, progress = resources.max_workers, 0, CheckpointProgress(run_dir)
    while True:
        # That list cannot be read when a folder in it is gone or a write of it was cut off; what
        # counts is on disk, and the loop reports that again.
        retry_io(lambda: delete(run_dir / RAY_SNAPSHOT))
        try:
            return make_trainer(workers).fit()
        except (ray.train.ControllerError, RayActorError) as error:
            cause = getattr(error, "controller_failure", error)
            if isinstance(cause, WorkerGroupStartupTimeoutError):
                wanted = cause.num_workers
                log.warning("Training in %s waits for a place for %d worker(s)", run_dir, wanted)
                workers = max(resources.min_workers, wanted - 1)
                continue
            failures = 1 if progress.was_made() else failures + 1
            if failures > max_failures:
                raise
            workers = resources.max_workers  # there may be room for more by now
            log.warning("Training in %s begins again: %s", run_dir, cause)


def scaling_config(resources: RunResources) -> ScalingConfig:
    """What Ray Train reserves for the workers of a run."""
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


def _ray_storage_kwargs(run_dir: Path) -> dict[str, Any]:
    """Where Ray Train keeps what it has to remember of a run: beside what we keep."""
    kept = remote_path(run_dir.parent)
    if kept is None:
        return {"storage_path": str(run_dir.parent)}
    filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(kept.fs))
    return {"storage_path": kept.path, "storage_filesystem": filesystem}


def _warn_uneven_shards(plan: SamplePlan, workers: int) -> None:
    if plan.virtual_shards % workers:
        log.warning(
            "%d workers share %d virtual shards unequally, and wait for those with most; with a "
            "multiple of the workers, data.virtual_shards=N, shares of a new run are equal",
            workers,
            plan.virtual_shards,
        )


def _has_validation(config: Config) -> bool:
    return config.train.rollout_val_freq_epochs > 0 or config.train.rollout_validate_on_checkpoint


def _start_step(run_dir: Path) -> int:
    retry_io(lambda: download_run(run_dir))
    checkpoint = newest_checkpoint(run_dir)
    return 0 if checkpoint is None else checkpoint.step


def init_or_verify_run_dir(run: PreparedRun, run_dir: Path) -> SamplePlan:
    """Make the run's folder, or see that it is the same run's; return the plan it goes by.

    The number of virtual shards is that of the first start, so that the batches stay the same when
    the number of workers changes.

    Raises:
        UserError: the folder holds a run of another configuration or other data.
    """
    config, plan = run.config, run.plan
    settings, data = run_dir / CONFIG_FILE, run_dir / DATA_MANIFEST_FILE
    episodes = [[Path(e.path).name, e.length, e.content_hash] for e in run.train.episodes]
    if settings.is_file() and data.is_file():
        stored = OmegaConf.to_container(OmegaConf.load(settings))
        before = config_from_dict(stored)  # type: ignore[arg-type]  # options it lacks are younger
        changed = _config_diff(config_to_dict(before), config_to_dict(config))
        record = json.loads(data.read_text())
        if record["episodes"] != episodes:
            changed.append(f"the episodes of {config.data.dataset_dir} have changed")
        if changed:
            raise UserError(
                f"The run {display_path(run_dir)} was started with other settings: {'; '.join(changed)}. "
                "Choose another run_name, or use the same settings to go on with it."
            )
        shards = choose_virtual_shards(
            config.train.batch_size, config.cluster.num_workers, record["virtual_shards"]
        )
        plan = dataclasses.replace(plan, virtual_shards=shards)
    write_if_changed(settings, to_yaml(config))
    record = {
        "episodes": episodes,
        "virtual_shards": plan.virtual_shards,
        VAL_EPISODES_KEY: [dataclasses.asdict(episode.ref) for episode in run.held.episodes],
    }
    write_if_changed(data, json.dumps(record))
    return plan


def read_held_out(run_dir: Path) -> list[EpisodeRef]:
    """The episodes held out of a run; empty where they are not to be found."""
    path = run_dir / DATA_MANIFEST_FILE
    download(path)
    if not path.is_file():
        return []
    episodes = [EpisodeRef.from_dict(row) for row in json.loads(path.read_text()).get(VAL_EPISODES_KEY, [])]
    return episodes if all(exists(parse_path(episode.path)) for episode in episodes) else []


def _config_diff(before: Any, after: Any, prefix: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        found = []
        for key in after:
            name = f"{prefix}{key}"
            if name in resumable_options():
                continue
            found += _config_diff(before.get(key), after[key], f"{name}.")
        return found
    return [] if before == after else [f"{prefix[:-1]} was {before} and is {after}"]


def enable_validation(config: Config) -> Config:
    """The configuration with validation of every checkpoint switched on where there is none."""
    if _has_validation(config):
        return config
    train = dataclasses.replace(config.train, rollout_validate_on_checkpoint=True)
    return dataclasses.replace(config, train=train)
