"""Divides the CPUs and GPUs of a cluster among the parts of a run, without calling Ray.

A run has a driver, training workers, data readers and rollout actors. Ray counts logical CPUs, and
on a small machine each part gets a fraction of one. Amounts that the configuration leaves null are
computed from the cluster's size, so that no part waits forever for CPUs.

Data readers reserve no CPUs. Ray Data runs them on the whole CPUs that Train and Tune leave. On a
small machine no whole CPU would be left, and reading would never start. So a fraction is kept free
for readers, and `train.num_workers` limits the number of readers.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from imf_ray.cluster import SIM_POOL, TRAIN_POOL, ClusterSize, label_selector
from imf_ray.errors import UserError
from imf_ray.schema import Config

DRIVER_CPUS = 0.05
"""Logical CPUs of a run's driver process."""
WORKER_CPU_FRACTION, ROLLOUT_CPU_FRACTION, RESERVED_CPU_FRACTION = 0.6, 0.25, 0.15
"""Fractions of a run's CPUs for workers, rollout actors and readers, if not configured."""
MAX_CPUS_PER_WORKER, MAX_CPUS_PER_ROLLOUT_ACTOR = 8.0, 1.0
"""Maximum number of CPUs of one worker and of one rollout actor, if not configured."""
RESOURCE_EPS = 1e-3
"""Computed amounts are rounded down to multiples of this, as Ray stores four decimal digits."""


@dataclass(frozen=True)
class RolloutResources:
    """Number of rollout actors, and the CPUs and GPUs of each."""

    num_actors: int
    num_cpus: float
    """CPUs of one actor."""
    num_gpus: float = 0.0
    """GPUs of one actor."""
    node_pool_label: str | None = None
    """The node label that names a node's pool; None without pools."""

    @property
    def cpus(self) -> float:
        """CPUs of all actors."""
        return self.num_actors * self.num_cpus

    @property
    def ray_options(self) -> dict[str, Any]:
        """Ray options of each actor."""
        options = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        return options | label_selector(self.node_pool_label, SIM_POOL)

    def __str__(self) -> str:
        gpus = f", {self.num_gpus:g} GPU" if self.num_gpus else ""
        return f"{self.num_actors} rollout actor(s) x {self.num_cpus:g} CPU{gpus}"


@dataclass(frozen=True)
class RunResources:
    """Resources of one run: a training run or one trial of a sweep."""

    min_workers: int
    max_workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    rollout: RolloutResources

    @property
    def is_elastic(self) -> bool:
        """True if the number of workers may change during the run."""
        return self.min_workers < self.max_workers

    @property
    def node_pool_label(self) -> str | None:
        """The node label that names a node's pool; None without pools."""
        return self.rollout.node_pool_label

    @property
    def cpus_excluding_workers(self) -> float:
        """CPUs of the driver and the rollout actors."""
        return DRIVER_CPUS + self.rollout.cpus

    @property
    def cpus(self) -> float:
        """CPUs of the whole run with `max_workers`."""
        return self.cpus_excluding_workers + self.max_workers * self.cpus_per_worker

    @property
    def gpus(self) -> float:
        """GPUs of the whole run with `max_workers`."""
        return self.max_workers * self.gpus_per_worker

    def __str__(self) -> str:
        workers = str(self.max_workers)
        if self.is_elastic:
            workers = f"{self.min_workers} to {workers}"
        return (
            f"driver {DRIVER_CPUS:g} CPU + {workers} worker(s) x {self.cpus_per_worker:g} CPU, "
            f"{self.gpus_per_worker:g} GPU + {self.rollout} = {self.cpus:g} CPU, {self.gpus:g} GPU"
        )


def allocate_run(config: Config, size: ClusterSize, concurrent_trials: int = 1) -> RunResources:
    """Compute the resources of one run from its share of the cluster, 1 / `concurrent_trials`.

    Raises:
        UserError: the run does not fit. The message shows requested and available resources.
    """
    cluster = config.cluster
    gpus_per_worker = cluster.gpus_per_worker if config.train.device == "cuda" else 0.0
    min_workers = cluster.min_workers or cluster.num_workers
    train_pool = size.pool(TRAIN_POOL)
    if config.evaluate.device != "cpu":
        raise UserError(
            f"evaluate.device={config.evaluate.device}: validation during training runs on CPUs. "
            "Set evaluate.device=cpu. To evaluate checkpoints on GPUs, use `imf-ray evaluate`."
        )
    _check_gpus(min_workers, cluster.num_workers, gpus_per_worker, concurrent_trials, train_pool)
    cpus_per_worker, cpus_per_rollout_actor = _divide_cpus(config, size, concurrent_trials)
    if cluster.cpus_per_worker is None:
        num_workers = _current_num_workers(config, size, concurrent_trials)
        limit = _max_cpus_per_worker(
            train_pool, num_workers * concurrent_trials, needs_gpu=gpus_per_worker > 0
        )
        cpus_per_worker = min(cpus_per_worker, limit)
    run = RunResources(
        min_workers=min_workers,
        max_workers=cluster.num_workers,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        rollout=RolloutResources(
            cluster.num_rollout_actors,
            cpus_per_rollout_actor,
            node_pool_label=cluster.node_pool_label,
        ),
    )
    _check_cpus(dataclasses.replace(run, max_workers=min_workers), size, concurrent_trials)
    return run


def _current_num_workers(config: Config, size: ClusterSize, concurrent_trials: int) -> int:
    """Return the number of workers of one run that the cluster currently has GPUs for.

    An elastic run may get more workers later.
    """
    cluster = config.cluster
    if config.train.device != "cuda":
        return cluster.num_workers
    min_workers = cluster.min_workers or cluster.num_workers
    slots = gpu_worker_slots(size.pool(TRAIN_POOL), cluster.gpus_per_worker)
    return min(cluster.num_workers, max(min_workers, slots // concurrent_trials))


def _divide_cpus(config: Config, size: ClusterSize, concurrent_trials: int) -> tuple[float, float]:
    """Return the CPUs per worker and per rollout actor.

    Each is the configured number or, if null, computed from the cluster's size.
    """
    cluster = config.cluster
    counts = (_current_num_workers(config, size, concurrent_trials), cluster.num_rollout_actors)
    configured = (cluster.cpus_per_worker, cluster.cpus_per_rollout_actor)
    fractions = (WORKER_CPU_FRACTION, ROLLOUT_CPU_FRACTION)
    if size.pools:
        pool_cpus = (size.pool(TRAIN_POOL).cpus, size.pool(SIM_POOL).cpus)
        computed = [
            _round_down(cpus / concurrent_trials / count)
            for cpus, count in zip(pool_cpus, counts, strict=True)
        ]
    else:
        available = size.cpus / concurrent_trials - DRIVER_CPUS
        unconfigured_fraction = RESERVED_CPU_FRACTION
        for count, cpus, fraction in zip(counts, configured, fractions, strict=True):
            if cpus is None:
                unconfigured_fraction += fraction
            else:
                available -= count * cpus
        computed = [
            _round_down(max(available, 0.0) * fraction / unconfigured_fraction / count)
            for count, fraction in zip(counts, fractions, strict=True)
        ]
    cpus_per_worker, cpus_per_rollout_actor = (
        cpus if cpus is not None else min(share, limit)
        for cpus, share, limit in zip(
            configured, computed, (MAX_CPUS_PER_WORKER, MAX_CPUS_PER_ROLLOUT_ACTOR), strict=True
        )
    )
    return cpus_per_worker, cpus_per_rollout_actor


def _max_cpus_per_worker(pool: ClusterSize, num_workers: int, needs_gpu: bool) -> float:
    """Return the maximum number of CPUs of a worker, if workers are spread evenly over the nodes.

    The CPUs of one worker must be on one node.
    """
    node_cpus = [cpus for cpus, gpus in pool.nodes if gpus > 0 or not needs_gpu]
    share = max(node_cpus) / math.ceil(num_workers / len(node_cpus))
    return _round_down(share * WORKER_CPU_FRACTION)


def allocate_rollout_actors(config: Config, size: ClusterSize) -> RolloutResources:
    """Compute the rollout actors of a command that runs no training, such as evaluate.

    There are as many actors as fit on the CPUs and, with evaluate.device=cuda, on the GPUs.

    Raises:
        UserError: evaluate.device=cuda, and the cluster has no GPU for an actor.
    """
    cluster, size = config.cluster, size.pool(SIM_POOL)
    num_cpus = cluster.cpus_per_rollout_actor or min(MAX_CPUS_PER_ROLLOUT_ACTOR, size.cpus)
    num_actors = max(1, math.floor(size.cpus / num_cpus + RESOURCE_EPS))
    num_gpus = 0.0
    if config.evaluate.device != "cpu":
        num_gpus = cluster.gpus_per_rollout_actor
        num_actors = min(num_actors, gpu_worker_slots(size, num_gpus))
    if num_actors == 0:
        raise UserError(
            f"evaluate.device=cuda needs {num_gpus:g} GPUs per rollout actor, but the cluster "
            f"has {size.gpus:g} ({size}). Set evaluate.device=cpu or lower "
            "cluster.gpus_per_rollout_actor."
        )
    return RolloutResources(num_actors, num_cpus, num_gpus, cluster.node_pool_label)


def max_concurrent_trials(config: Config, size: ClusterSize, num_trials: int) -> int:
    """Return the number of trials that run at a time: the configured number, or as many as fit.

    The result is at least 1, even if no trial fits. `allocate_run` checks that one trial fits.

    Raises:
        UserError: tune.max_concurrent_trials is less than 1.
    """
    configured = config.tune.max_concurrent_trials
    if configured is not None:
        if configured < 1:
            raise UserError(f"tune.max_concurrent_trials={configured} must be at least 1.")
        return min(configured, num_trials)
    train_pool, cluster = size.pool(TRAIN_POOL), config.cluster
    if config.train.device == "cuda":
        limit = gpu_worker_slots(train_pool, cluster.gpus_per_worker) // cluster.num_workers
    else:
        cpus_per_trial = config.tune.min_cpus_per_trial
        if cluster.cpus_per_worker is not None:
            cpus_per_trial = max(cpus_per_trial, cluster.num_workers * cluster.cpus_per_worker)
        limit = math.floor(train_pool.cpus / cpus_per_trial + RESOURCE_EPS)
    candidates = range(min(limit, num_trials), 1, -1)
    return next((trials for trials in candidates if _fits(config, size, trials)), 1)


def _fits(config: Config, size: ClusterSize, concurrent_trials: int) -> bool:
    """True if the cluster has the resources for this number of concurrent trials."""
    try:
        run = allocate_run(config, size, concurrent_trials)
    except UserError:
        return False
    if not size.pending or size.pools:
        return True
    # The rollout actors of all trials start on the current nodes. If no pending node joins, the
    # workers of one trial must still fit next to them.
    current_cpus = sum(cpus for cpus, _ in size.nodes[: -size.pending])
    cpus = concurrent_trials * run.cpus_excluding_workers + run.min_workers * run.cpus_per_worker
    return cpus <= current_cpus + RESOURCE_EPS


def gpu_worker_slots(size: ClusterSize, gpus_per_worker: float) -> int:
    """Return the number of workers that fit on the GPUs.

    All GPUs of a worker must be on one node. A fraction of a GPU must be on one GPU.
    """
    if gpus_per_worker < 1.0:
        workers_per_gpu = math.floor(1.0 / gpus_per_worker + RESOURCE_EPS)
        return sum(math.floor(gpus) * workers_per_gpu for _, gpus in size.nodes)
    return sum(math.floor(gpus / gpus_per_worker + RESOURCE_EPS) for _, gpus in size.nodes)


def _check_gpus(
    min_workers: int,
    max_workers: int,
    gpus_per_worker: float,
    concurrent_trials: int,
    pool: ClusterSize,
) -> None:
    """Raise a `UserError` if the GPUs are not enough for the minimum number of workers."""
    if not gpus_per_worker:
        return
    if gpus_per_worker < 1.0 and max_workers > 1:
        raise UserError(
            f"cluster.gpus_per_worker={gpus_per_worker:g} with cluster.num_workers={max_workers}: "
            "trials can share a GPU, the workers of one run cannot, because NCCL refuses two ranks "
            "on one device. Set cluster.num_workers=1 or cluster.gpus_per_worker=1."
        )
    num_fitting = gpu_worker_slots(pool, gpus_per_worker)
    if num_fitting < min_workers * concurrent_trials:
        raise UserError(
            f"The configuration needs {min_workers} worker(s) x {gpus_per_worker:g} GPU"
            f"{_times_trials(concurrent_trials)} = "
            f"{min_workers * gpus_per_worker * concurrent_trials:g} GPUs, but the cluster has "
            f"{pool.gpus:g}, enough for {num_fitting} such worker(s) ({pool}). Lower "
            f"{_concurrency_hint(concurrent_trials)}cluster.num_workers or "
            "cluster.gpus_per_worker, or set train.device=cpu."
        )


def _check_cpus(run: RunResources, size: ClusterSize, concurrent_trials: int) -> None:
    """Raise a `UserError` if the run's parts do not fit on the CPUs of the cluster or of a node."""
    if run.cpus * concurrent_trials > size.cpus + RESOURCE_EPS:
        raise UserError(
            f"The configuration needs {run}{_times_trials(concurrent_trials)} = "
            f"{run.cpus * concurrent_trials:g} CPUs, but the cluster has {size.cpus:g} ({size}). "
            f"Lower {_concurrency_hint(concurrent_trials)}cluster.cpus_per_worker, "
            "cluster.num_workers or cluster.cpus_per_rollout_actor, or leave them null."
        )
    if min(run.cpus_per_worker, run.rollout.num_cpus) <= 0.0:
        raise UserError(
            f"No CPU is left for some part of the run: {run}, of {size}. Lower the numbers of "
            "CPUs in cluster.*, or leave them null."
        )
    parts = (
        (TRAIN_POOL, "worker", "num_workers", run.max_workers, run.cpus_per_worker),
        (
            SIM_POOL,
            "rollout actor",
            "num_rollout_actors",
            run.rollout.num_actors,
            run.rollout.num_cpus,
        ),
    )
    for pool_name, part, key, count, cpus_each in parts:
        pool = size.pool(pool_name)
        num_fitting = sum(math.floor(cpus / cpus_each + RESOURCE_EPS) for cpus, _ in pool.nodes)
        if num_fitting < count * concurrent_trials:
            raise UserError(
                f"Only {num_fitting} of {count * concurrent_trials} {part}s with {cpus_each:g} "
                f"CPUs each fit on the nodes ({pool}). Lower {_concurrency_hint(concurrent_trials)}"
                f"cluster.{key}, or the CPUs of each {part} in cluster.*."
            )


def _times_trials(concurrent_trials: int) -> str:
    """Return the factor of concurrent trials in the arithmetic of an error message."""
    return f" x {concurrent_trials} trials at a time" if concurrent_trials > 1 else ""


def _concurrency_hint(concurrent_trials: int) -> str:
    """Return the option of concurrent trials for the hint of an error message."""
    return "tune.max_concurrent_trials, " if concurrent_trials > 1 else ""


def _round_down(value: float) -> float:
    return round(math.floor(value / RESOURCE_EPS) * RESOURCE_EPS, 3)
