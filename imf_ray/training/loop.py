"""The training loop of one worker: plain PyTorch with a few calls to Ray Train.

The same loop runs on one CPU, eight GPUs or a cluster. DDP wraps the agent, whose
`forward` returns the loss, so gradients are averaged over ranks although the loss contains a JVP.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.collective
import ray.train.torch
import torch
import torch.distributed
from torch import Tensor

from imf_ray.data.pipeline import TrainDataset
from imf_ray.data.source_files import writable_cache_folder
from imf_ray.data.statistics import Statistics
from imf_ray.data.windows import Batch, window_spec_from_config
from imf_ray.errors import DivergenceError
from imf_ray.metrics_export import RANK, MetricExporter, run_tags
from imf_ray.ray_internals import wait_for_task_events
from imf_ray.schema import Config
from imf_ray.storage import parse_path
from imf_ray.training.diagnostics import GradientNorms, run_diagnostics
from imf_ray.training.feature_store import FeatureStore
from imf_ray.training.live_progress import FEATURES, UPDATES, ProgressWriter
from imf_ray.training.reporting import CheckpointReporter, CheckpointSchedule
from imf_ray.training.run_dir import RunDir
from imf_ray.training.stop_monitor import StopMonitor
from imf_ray.training.tracking import SampleLog, Tracker, make_worker_record
from imf_ray.training.train_state import TrainState, split_microbatches, to_tensors

WORKER_CONFIG_KEY = "worker_config"
"""The only key of `train_loop_config`. Its value is a `WorkerConfig`."""


@dataclass(frozen=True)
class WorkerConfig:
    """Input of every worker, made by the driver."""

    config: Config
    run_dir: RunDir
    dataset: TrainDataset
    statistics: Statistics
    cpus: float
    """Number of CPUs of each worker, and of PyTorch's threads in it."""
    initial_weights: ray.ObjectRef | None = None
    """The `InitialWeights` of a new run."""
    num_skipped_episodes: int = 0
    """Number of invalid episode files that the data set leaves out."""
    varied: Sequence[str] = ()
    """Names of the options that differ between the trials of the run's sweep."""


def train_worker(train_loop_config: dict[str, Any]) -> dict[str, Any]:
    """Train on one worker; Ray Train runs this function on every rank.

    Returns:
        `swanlab_run` (see `Tracker.swanlab_run`; None except on rank 0), and `stopped`: True if a
        stop request ended the training before its last step.
    """
    worker: WorkerConfig = train_loop_config[WORKER_CONFIG_KEY]
    config, run_dir, dataset = worker.config, worker.run_dir, worker.dataset
    train, plan = config.train, dataset.plan
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    _download_run(run_dir)
    worker_record = make_worker_record(rank)
    run_dir.write_worker_record(worker_record)
    # With more threads than free CPUs, threads wait for each other and throughput collapses.
    torch.set_num_threads(max(1, int(worker.cpus)))

    device = ray.train.torch.get_device() if train.device == "cuda" else torch.device("cpu")
    checkpoint = run_dir.newest_checkpoint()
    start_step = 0 if checkpoint is None else checkpoint.step
    batches = dataset.batches(rank, world_size, start_step)  # reads while the agent is built
    is_new = checkpoint is None and worker.initial_weights is not None
    weights = ray.get(worker.initial_weights).tensors if is_new else None
    state = TrainState(config, worker.statistics, device, weights)
    if checkpoint is not None:
        state.restore(checkpoint, plan)
    state.distribute()

    tracker = None
    if rank == 0:
        run_dir.delete_partial_checkpoints()
        tracker = Tracker(run_dir, config, state.step, worker.num_skipped_episodes, worker.varied)
        if tracker.swanlab_run is not None:
            worker_record = replace(worker_record, swanlab_run=tracker.swanlab_run)
            run_dir.write_worker_record(worker_record)
    schedule = CheckpointSchedule(train, plan.steps_per_epoch)
    reporter = CheckpointReporter(run_dir, schedule, train.keep_last_k, tracker)
    reporter.report_existing_checkpoints(state.step)
    stop_monitor = StopMonitor(run_dir, rank, world_size)
    sample_log = SampleLog(run_dir, rank) if train.log_sample_ids else None
    exporter = MetricExporter({**run_tags(run_dir.path), RANK: str(rank)})
    timer, grad_norms = DataWaitTimer(exporter), GradientNorms(train.grad_clip)
    metrics: dict[str, float] = {}
    progress = ProgressWriter(run_dir.path, UPDATES, train.max_steps) if rank == 0 else None

    features = _prepare_features(state, worker) if config.agent.has_fixed_features else None
    for batch in timer.wrap(batches):
        if features is not None:
            batch["image_features"] = features.windows(np.asarray(batch["sample_id"]))
        if sample_log is not None:
            sample_log.log(state.step, np.asarray(batch["sample_id"]))
        torch.manual_seed(_dropout_seed(train.seed, state.step, rank))
        epoch = state.step // plan.steps_per_epoch
        tensors = to_tensors(batch, config, epoch, device, world_size)
        loss, grad_norm = state.update(tensors)
        grad_norms.add(grad_norm)

        step, num_epochs = state.step, state.step / plan.steps_per_epoch
        if progress is not None:
            progress.write(step, step)
        node_draining, stop_requested = stop_monitor.poll()
        save = schedule.should_save(step) or node_draining or stop_requested
        log_now = _is_due(step, train.log_freq) or step == train.max_steps
        if log_now or save:  # logging and saving wait for the device anyway
            _check_finite(grad_norm, step)
        if log_now:
            metrics = {"loss": _mean_over_ranks(loss, world_size)}
            metrics |= {"lr": float(state.schedule.get_last_lr()[0])}
            metrics |= {"data_wait_frac": timer.fraction(), **grad_norms.metrics()}
            if device.type == "cuda":
                exporter.set({"gpu_memory_bytes": torch.cuda.max_memory_allocated(device)})
            if tracker is not None:
                tracker.log(step, {"epoch": num_epochs, **metrics})
            reporter.collect_validations()
        if tracker is not None and _is_due(step, train.diagnostics_freq):
            microbatch = split_microbatches(tensors, train.gradient_accumulation_steps)[0]
            tracker.log_diagnostics(step, run_diagnostics(state.agent, microbatch, run_dir))
        if save:
            saved = None
            if tracker is not None:
                with exporter.timed("checkpoint_seconds"):
                    saved = state.save(run_dir, {"epoch": num_epochs, **metrics}, plan)
            reporter.report(step, saved)
        if stop_requested:
            break

    exporter.close()
    if sample_log is not None:
        sample_log.close()
    cpu_s = sum(os.times()[:4])  # of this process and its ended children
    run_dir.write_worker_record(replace(worker_record, cpu_s=cpu_s))
    stopped = state.step < train.max_steps
    swanlab_run = None
    if tracker is not None:
        if not stopped:
            reporter.wait_for_validations()
        tracker.close()
        swanlab_run = tracker.swanlab_run
    wait_for_task_events()  # Ray kills this process at once
    if tracker is not None:
        run_dir.clear_stop()  # tells the driver that it may kill this process
    return {"swanlab_run": swanlab_run, "stopped": stopped}


def _prepare_features(state: TrainState, worker: WorkerConfig) -> FeatureStore:
    """Load or compute the features of frozen image encoders, and show how far it is."""
    config, episodes = worker.config, worker.dataset.episodes
    cache = writable_cache_folder(parse_path(config.data.dataset_dir))
    store = FeatureStore(state.agent, episodes, window_spec_from_config(config), cache)
    progress = ProgressWriter(worker.run_dir.path, FEATURES, len(episodes))
    store.prepare(lambda completed: progress.write(completed, state.step))
    return store


def _download_run(run_dir: RunDir) -> None:
    """Download a remote run once per machine, because its ranks share the local copy."""
    if run_dir.is_remote:
        if ray.train.get_context().get_local_rank() == 0:
            run_dir.download()
        ray.train.collective.barrier()


class DataWaitTimer:
    """Measures the time spent waiting for data, and the whole time of each training step."""

    def __init__(self, exporter: MetricExporter) -> None:
        self._exporter = exporter
        self._waited_s, self._since = 0.0, time.perf_counter()

    def wrap(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches and measure how long each takes to arrive."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            waited_s = time.perf_counter() - start
            if batch is None:
                return
            self._waited_s += waited_s
            self._exporter.observe("data_wait_seconds", waited_s)
            yield batch
            self._exporter.observe("training_step_seconds", time.perf_counter() - start)

    def fraction(self) -> float:
        """Return the fraction of the time since the last call that was spent waiting for data."""
        now = time.perf_counter()
        fraction = self._waited_s / max(now - self._since, 1e-9)
        self._waited_s, self._since = 0.0, now
        self._exporter.set({"data_wait_ratio": fraction})
        return fraction


def _is_due(step: int, period: int) -> bool:
    return period > 0 and step % period == 0


def _check_finite(grad_norm: Tensor, step: int) -> None:
    """Check that the gradient norm is finite, so that diverged weights are never saved.

    The norm is equal on all ranks, since gradients are averaged. Once it is not finite, it stays so
    in all later training steps.

    Raises:
        DivergenceError: the norm is not finite.
    """
    if not math.isfinite(float(grad_norm)):
        raise DivergenceError(
            f"The gradient norm is {float(grad_norm)} at training step {step}. Lower train.lr, or "
            "check the data."
        )


def _mean_over_ranks(loss: Tensor, world_size: int) -> float:
    if world_size > 1:
        torch.distributed.all_reduce(loss)
        loss = loss / world_size
    return float(loss)


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of the dropout masks of a step, so that a resumed run repeats them."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
