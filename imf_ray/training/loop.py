"""What one training worker does: plain PyTorch with a few calls to Ray Train.

The same loop runs on one CPU, eight GPUs or a cluster. The agent is the module that DDP wraps and
its forward is the loss, so that gradients are averaged although they pass a JVP.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.collective
import ray.train.torch
import torch
import torch.distributed
from ray.train import CheckpointConsistencyMode, ReportedCheckpoint
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from imf_ray.agents.base import VLAAgent
from imf_ray.agents.pretrained import EMA_WEIGHTS_FILE, WEIGHTS_FILE, make_agent
from imf_ray.config import config_from_dict
from imf_ray.data.pipeline import DATASET_NAME, TrainDataset
from imf_ray.data.sample_rng import crop_offsets, sample_noise_and_uniforms
from imf_ray.data.sampling import SamplePlan
from imf_ray.data.statistics import Statistics
from imf_ray.data.windows import Batch
from imf_ray.errors import DivergenceError, StorageError, UserError
from imf_ray.files import retry_io
from imf_ray.schema import Config
from imf_ray.storage import remote_path, to_local
from imf_ray.training.acceleration import check_bf16_support, compile_loss
from imf_ray.training.checkpoint import (
    CheckpointSchedule,
    SavedCheckpoint,
    clear_validation,
    delete_partial_checkpoints,
    download_run,
    list_checkpoints,
    load_trainer_state,
    newest_checkpoint,
    prune_checkpoints,
    pull_validations,
    read_validations,
    save_checkpoint,
    upload_checkpoint,
)
from imf_ray.training.diagnostics import GradientNorms, run_diagnostics
from imf_ray.training.optimizer import EMA, make_optimizer, make_schedule
from imf_ray.training.stop_signal import StopMonitor, clear_stop
from imf_ray.training.tracking import SampleLog, Tracker, write_worker_record

COMMIT_TIMEOUT_S = 30.0
EARLIER_VALIDATIONS_KEY = "earlier_validations"
"""In a report: the metrics of validations that ended before the one whose metrics it holds."""
DATA_STATE_KEY = "position"
"""In the trainer's state: see `SamplePlan.position`."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerConfig:
    """What the driver hands to every worker."""

    config: dict[str, Any]
    run_dir: str
    stream: TrainDataset
    statistics: Statistics
    skipped_episodes: int = 0
    """Files that were left out of the data set."""


class TrainState:
    """The trained state of one worker: agent, average, optimizer, schedule and step."""

    def __init__(self, config: Config, statistics: Statistics, device: torch.device) -> None:
        torch.manual_seed(config.train.seed)  # the same first weights on every rank
        self._config = config
        self.agent: VLAAgent = make_agent(config.agent, config.task.action_space, statistics)
        self.agent.to(device).train()
        if config.train.encoder_precision == "bf16":
            check_bf16_support(device)
            self.agent.bf16_encoders = True
        if config.train.compile:
            compile_loss(self.agent, device)
        self.device = device
        self.step = 0
        self.average = EMA(self.agent) if config.train.ema else None
        self.optimizer = make_optimizer(self.agent, config.train)
        self.schedule = make_schedule(self.optimizer, config.train)
        self.module: nn.Module = self.agent

    def distribute(self) -> None:
        """Wrap the agent for data parallelism; its gradients are averaged from here on."""
        self.module = ray.train.torch.prepare_model(self.agent, move_to_device=False)

    def restore(self, checkpoint: SavedCheckpoint, plan: SamplePlan) -> None:
        """Go on from a checkpoint: the run that follows is the one that would have been.

        Raises:
            UserError: the checkpoint is not from this place in the plan's samples.
        """
        state = load_trainer_state(checkpoint.path, str(self.device))
        expected = plan.position(checkpoint.step)
        position = state.get(DATA_STATE_KEY, expected)  # earlier versions did not note it
        if position != expected:
            raise UserError(
                f"{checkpoint.path} was saved at {position} of its data, and here the data are at "
                f"{expected}: the run folder was put together of two runs."
            )
        self.step = checkpoint.step
        self.agent.load_state_dict(load_file(checkpoint.path / WEIGHTS_FILE))
        if self.average is not None:
            self.average.load(load_file(checkpoint.path / EMA_WEIGHTS_FILE))
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])

    def save(
        self, run_dir: Path, metrics: Mapping[str, float], plan: SamplePlan
    ) -> SavedCheckpoint:
        """Write a checkpoint of the present step, with the metrics to remember."""
        state = {
            DATA_STATE_KEY: plan.position(self.step),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        average = None if self.average is None else self.average.state
        return save_checkpoint(
            run_dir, self.step, metrics, self.agent, self._config, average, state
        )

    def update(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """One optimization step; returns the loss and the gradient norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(
            split_microbatches(batch, self._config.train.gradient_accumulation_steps)
        )
        norm = nn.utils.clip_grad_norm_(self.agent.parameters(), self._config.train.grad_clip)
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update(self.step)
        self.step += 1
        return loss, norm

    def _backward(self, parts: Sequence[Mapping[str, Any]]) -> Tensor:
        """Add up the gradients of a batch's parts, averaged over ranks with the last one's."""
        total = torch.zeros((), device=self.device)
        for number, part in enumerate(parts, start=1):
            waits = number < len(parts) and isinstance(self.module, DistributedDataParallel)
            with self.module.no_sync() if waits else nullcontext():  # type: ignore[operator]
                loss = self.module(part)
                loss.backward()
            total += loss.detach()
        return total


def split_microbatches(batch: Mapping[str, Any], parts: int) -> list[dict[str, Any]]:
    """Parts of a batch of tensors, about equal, along their first axis; scalars belong to each.

    With `valid_count` among those, the losses of the parts add up to that of the batch.
    """
    split: list[dict[str, Any]] = [{} for _ in range(parts)]
    for key, value in batch.items():
        pieces: Sequence[Any] = [value] * parts
        if isinstance(value, Mapping):
            pieces = split_microbatches(value, parts)
        elif value.ndim > 0:
            pieces = value.tensor_split(parts)
        for part, piece in zip(split, pieces, strict=True):
            part[key] = piece
    return split


def to_tensors(
    batch: Batch, config: Config, epoch: int, device: torch.device, world_size: int = 1
) -> dict[str, Any]:
    """A batch of windows on the device, with the objective's random numbers of its samples.

    Images stay uint8. `valid_count` is the number of valid actions of the global batch over the
    world size, which makes averaged gradients equal to those of a single process.
    """
    ids = batch["sample_id"]
    assert isinstance(ids, np.ndarray)
    shape = (config.agent.pred_horizon, config.agent.action_dim)
    count = config.agent.noise_samples_per_obs
    draws = sample_noise_and_uniforms(config.train.seed, epoch, ids, shape, count)
    if config.agent.vision_backbone.crop_size is not None:
        cameras = len(config.agent.camera_names)
        draws["crop_offsets"] = crop_offsets(config.train.seed, epoch, ids, cameras)
    tensors: dict[str, Any] = {
        key: {name: torch.from_numpy(v).to(device, non_blocking=True) for name, v in value.items()}
        if isinstance(value, dict)
        else torch.from_numpy(value).to(device, non_blocking=True)
        for key, value in {**batch, **draws}.items()
    }
    valid = (~tensors["action_is_pad"]).sum().float()
    if world_size > 1:
        torch.distributed.all_reduce(valid)
    tensors["valid_count"] = valid / world_size
    return tensors


def train_worker(train_loop_config: dict[str, Any]) -> dict[str, Any]:
    """The function that Ray Train runs on every worker."""
    payload: WorkerConfig = train_loop_config["payload"]
    config, stream, run_dir = (
        config_from_dict(payload.config),
        payload.stream,
        to_local(Path(payload.run_dir)),
    )
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    if remote_path(run_dir) is not None:  # the ranks of a machine share its working copy
        if context.get_local_rank() == 0:
            retry_io(lambda: download_run(run_dir))
        ray.train.collective.barrier()
    retry_io(lambda: write_worker_record(run_dir, rank))
    # Beside busy processes, more threads than CPUs wait for each other and everything collapses.
    torch.set_num_threads(max(1, int(train_loop_config["cpus"])))

    on_gpu = config.train.device == "cuda"
    device = ray.train.torch.get_device() if on_gpu else torch.device("cpu")
    trainer = TrainState(config, payload.statistics, device)
    start = newest_checkpoint(run_dir)
    if start is not None:
        trainer.restore(start, stream.plan)
    trainer.distribute()
    tracker = None
    if rank == 0:
        delete_partial_checkpoints(run_dir)
        tracker = Tracker(run_dir, config, trainer.step, payload.skipped_episodes)
    schedule = CheckpointSchedule(config.train, stream.plan.steps_per_epoch)
    reporter = CheckpointReporter(run_dir, schedule, config.train.keep_last_k, tracker)
    reporter.report_what_is_there(trainer.step)

    iterator = ray.train.get_dataset_shard(DATASET_NAME)
    batches = stream.batches(iterator, rank, world_size, trainer.step)
    clock, norms = DataWaitTimer(), GradientNorms(config.train.grad_clip)
    metrics: dict[str, float] = {}
    samples = SampleLog(run_dir, rank) if config.train.log_sample_ids else None
    lookout = StopMonitor(run_dir, rank, world_size)
    for batch in clock.timed(batches):
        if samples is not None:
            samples.log(trainer.step, np.asarray(batch["sample_id"]))
        epoch = trainer.step // stream.plan.steps_per_epoch
        torch.manual_seed(_dropout_seed(config.train.seed, trainer.step, rank))
        tensors = to_tensors(batch, config, epoch, trainer.device, world_size)
        loss, norm = trainer.update(tensors)
        norms.add(norm)
        progress = trainer.step / stream.plan.steps_per_epoch
        urgent, asked_to_stop = lookout.look()
        is_saved = schedule.due(trainer.step) or urgent
        is_logged = _is_due(trainer.step, config.train.log_freq)
        is_logged |= trainer.step == config.train.max_steps
        if is_logged or is_saved:  # where the device is waited for anyway
            _require_finite(norm, trainer.step)
        if is_logged:
            metrics = _metrics(loss, trainer, world_size)
            metrics |= {"data_wait_frac": clock.data_wait(), **norms.metrics()}
            if tracker is not None:
                tracker.log(trainer.step, {"epoch": progress, **metrics})
            reporter.look_for_validations()
        if tracker is not None and _is_due(trainer.step, config.train.diagnostics_freq):
            part = split_microbatches(tensors, config.train.gradient_accumulation_steps)[0]
            tracker.log_diagnostics(trainer.step, run_diagnostics(trainer.agent, part, run_dir))
        if is_saved:
            saved = None
            if tracker is not None:
                found = {"epoch": progress, **metrics}
                saved = retry_io(functools.partial(trainer.save, run_dir, found, stream.plan))
                retry_io(functools.partial(upload_checkpoint, saved.path))
            reporter.report(trainer.step, saved)
        if asked_to_stop:
            break
    if samples is not None:
        samples.close()
    stopped = trainer.step < config.train.max_steps
    swanlab_run = None
    if tracker is not None:
        if not stopped:
            reporter.wait_for_validations()
        swanlab_run = tracker.swanlab_run
        tracker.close()
        retry_io(lambda: clear_stop(run_dir))  # answered: whoever asked may kill this process now
    return {"swanlab_run": swanlab_run, "stopped": stopped}


class CheckpointReporter:
    """Tells Ray Train of checkpoints.

    Rank 0 has the tracker and brings the checkpoints; every rank makes the same calls.
    """

    def __init__(
        self, run_dir: Path, schedule: CheckpointSchedule, keep_last_k: int, tracker: Tracker | None
    ) -> None:
        self._run_dir = run_dir
        self._schedule = schedule
        self._keep_last = keep_last_k
        self._tracker = tracker
        # Those of earlier workers, too: Ray Train may not have been told of them.
        self._found = [] if tracker is None else retry_io(lambda: read_validations(run_dir))

    def look_for_validations(self) -> None:
        """Log those that have ended; Ray Train is told of them with the next checkpoint."""
        if self._tracker is not None:
            self._found += self._tracker.log_validations()

    def report(self, step: int, saved: SavedCheckpoint | None) -> None:
        """Report a checkpoint, log what is known by now, and delete what is not needed."""
        metrics: dict[str, Any] = {"step": step}
        checkpoint = None
        if saved is not None and self._tracker is not None:
            checkpoint = _in_storage(saved.path)
            # What was found out of earlier checkpoints comes late, and is what ranks trials.
            retry_io(lambda: pull_validations(self._run_dir))
            self.look_for_validations()
            *earlier, latest = self._found or [{}]
            metrics |= {**saved.metrics, **latest, EARLIER_VALIDATIONS_KEY: earlier}
            self._found = []
        ray.train.report(
            metrics,
            checkpoint=checkpoint,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
            validation=saved is not None and self._schedule.validated(step) and not saved.validated,
        )
        self._prune()

    def report_what_is_there(self, step: int) -> None:
        """Report the checkpoints on disk whose report, or whose validation, was lost.

        Args:
            step: at which this rank goes on.

        Raises:
            RuntimeError: another rank goes on elsewhere; they would wait for each other for ever.
        """
        unknown: list[int] = []
        saved: dict[int, SavedCheckpoint] = {}
        if self._tracker is not None:
            saved = {checkpoint.step: checkpoint for checkpoint in list_checkpoints(self._run_dir)}
            known = {Path(entry.checkpoint.path).name for entry in _reported()}
            unknown = [step for step, entry in saved.items() if entry.path.name not in known]
        first, unknown = ray.train.collective.broadcast_from_rank_zero((step, unknown))
        if step != first:
            raise RuntimeError(f"Rank 0 goes on from step {first}, another one from step {step}.")
        for number in set(unknown) & saved.keys():  # all of them before the first report prunes
            checkpoint = saved[number]
            failed = checkpoint.validated and not checkpoint.judged
            if failed and self._schedule.validated(number):
                saved[number] = retry_io(functools.partial(clear_validation, checkpoint))
        for number in unknown:
            self.report(number, saved.get(number))

    def wait_for_validations(self) -> None:
        """Wait for the validations under way, log them, and delete what waited for them."""
        assert self._tracker is not None
        ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.VALIDATED)
        retry_io(lambda: pull_validations(self._run_dir))
        self._tracker.log_validations()
        self._prune()

    def _prune(self) -> None:
        if self._tracker is None:
            return
        try:
            prune_checkpoints(self._run_dir, self._keep_last, self._schedule.validated)
        except StorageError as error:  # the next time will do
            log.warning("Older checkpoints are kept for now: %s", error)


def _in_storage(checkpoint: Path) -> ray.train.Checkpoint:
    """A checkpoint of the run as Ray Train names it: by where it is kept."""
    storage = ray.train.get_context().get_storage()
    path = f"{storage.experiment_fs_path}/{checkpoint.name}"
    return ray.train.Checkpoint(path, filesystem=storage.storage_filesystem)


def _reported() -> list[ReportedCheckpoint]:
    """The checkpoints that Ray Train knows of."""
    return ray.train.get_all_reported_checkpoints(
        CheckpointConsistencyMode.COMMITTED, timeout_s=COMMIT_TIMEOUT_S
    )


class DataWaitTimer:
    """Shares of time: waiting for data, and the rest."""

    def __init__(self) -> None:
        self._waited, self._since = 0.0, time.perf_counter()

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on, counting the time until each is there."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def data_wait(self) -> float:
        """Share of the time since the last call that was spent waiting for data."""
        now = time.perf_counter()
        share = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return share


def _is_due(step: int, period: int) -> bool:
    return period > 0 and step % period == 0


def _require_finite(norm: Tensor, step: int) -> None:
    """See that weights which went wrong are never saved; the norm is that of all ranks' gradients.

    Raises:
        DivergenceError: it is not finite, as of every update after such a one.
    """
    if not math.isfinite(float(norm)):
        raise DivergenceError(
            f"The gradient's norm is {float(norm)} at step {step}: lower train.lr, or look at the "
            "data."
        )


def _metrics(loss: Tensor, trainer: TrainState, world_size: int) -> dict[str, float]:
    if world_size > 1:
        torch.distributed.all_reduce(loss)
        loss = loss / world_size
    return {"loss": float(loss), "lr": float(trainer.schedule.get_last_lr()[0])}


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    """Dropout masks follow (seed, step, rank), so that a resumed run draws the same ones."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
