"""Who gets what of a cluster: the arithmetic of CPUs and GPUs, without Ray.

A run needs a driver, training workers, readers beside each worker and rollout actors. On a small
machine all of them live in fractions of a CPU, since Ray counts logical CPUs: what is not given in
the configuration is computed from what is there, so that nothing waits for ever. Readers reserve
nothing: Ray Data hands out whatever Train and Tune leave in whole CPUs a dataset, which on a small
machine is none, and its reads starve. A share is left free for them, and `train.num_workers` bounds
their number.
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
WORKER_CPU_FRACTION, ROLLOUT_CPU_FRACTION, RESERVED_CPU_FRACTION = 0.6, 0.25, 0.15
"""How a run's CPUs are divided where the configuration leaves them open."""
MAX_CPUS_PER_WORKER, MAX_CPUS_PER_ROLLOUT_ACTOR = 8.0, 1.0
RESOURCE_EPS = 1e-3
"""Ray counts resources to four digits; shares are rounded down to this."""


@dataclass(frozen=True)
class RunResources:
    """What one run (a training or one trial) takes from the cluster."""

    workers: int
    """At most."""
    cpus_per_worker: float
    gpus_per_worker: float
    num_rollout_actors: int
    cpus_per_rollout_actor: float
    fewest_workers: int | None = None
    """With which the run goes on; None is all of them."""
    node_pool_label: str | None = None
    """The label that says which pool a node belongs to."""

    @property
    def rollout_options(self) -> dict[str, Any]:
        """What Ray is told of each simulator."""
        return {"num_cpus": self.cpus_per_rollout_actor} | label_selector(
            self.node_pool_label, SIM_POOL
        )

    @property
    def min_workers(self) -> int:
        """The least number of workers."""
        return self.workers if self.fewest_workers is None else self.fewest_workers

    @property
    def is_fixed(self) -> bool:
        """Whether the run has always as many workers."""
        return self.min_workers == self.workers

    @property
    def cpus_excluding_workers(self) -> float:
        """CPUs of the driver and the simulators."""
        return DRIVER_CPUS + self.num_rollout_actors * self.cpus_per_rollout_actor

    @property
    def cpus(self) -> float:
        """CPUs of the whole run."""
        return self.cpus_excluding_workers + self.workers * self.cpus_per_worker

    @property
    def gpus(self) -> float:
        """GPUs of the whole run."""
        return self.workers * self.gpus_per_worker

    @property
    def _count(self) -> str:
        if self.is_fixed:
            return str(self.workers)
        return f"{self.min_workers} to {self.workers}"

    def __str__(self) -> str:
        return (
            f"driver {DRIVER_CPUS:g} CPU + {self._count} worker(s) x {self.cpus_per_worker:g} "
            f"CPU, {self.gpus_per_worker:g} GPU + {self.num_rollout_actors} simulator(s) x "
            f"{self.cpus_per_rollout_actor:g} CPU = {self.cpus:g} CPU, {self.gpus:g} GPU"
        )


@dataclass(frozen=True)
class RolloutResources:
    """Simulators of one judgement, and what each takes."""

    actors: int
    cpus: float
    gpus: float
    node_pool_label: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What Ray is told of each."""
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        return options | label_selector(self.node_pool_label, SIM_POOL)


def allocate_run(config: Config, size: ClusterSize, slots: int = 1) -> RunResources:
    """Divide 1/slots of the cluster among the parts of one run.

    Raises:
        UserError: the run does not fit; the message holds the arithmetic.
    """
    cluster = config.cluster
    gpus_per_worker = cluster.gpus_per_worker if config.train.device == "cuda" else 0.0
    fewest = cluster.min_workers or cluster.num_workers
    trainers = size.pool(TRAIN_POOL)
    if config.evaluate.device != "cpu":
        raise UserError(
            f"evaluate.device={config.evaluate.device}: beside training, policies are judged on "
            "CPUs. Set evaluate.device=cpu, and judge checkpoints on GPUs by "
            "`python -m imf_ray.evaluate`."
        )
    _check_gpus(fewest, cluster.num_workers, gpus_per_worker, slots, trainers)
    workers = cluster.num_workers  # as many as may be here: more may come
    if gpus_per_worker:
        workers = min(workers, max(fewest, gpu_worker_slots(trainers, gpus_per_worker) // slots))
    parts = [
        (workers, cluster.cpus_per_worker, WORKER_CPU_FRACTION, MAX_CPUS_PER_WORKER),
        (
            cluster.num_rollout_actors,
            cluster.cpus_per_rollout_actor,
            ROLLOUT_CPU_FRACTION,
            MAX_CPUS_PER_ROLLOUT_ACTOR,
        ),
    ]
    if size.pools:
        rooms = (trainers.cpus, size.pool(SIM_POOL).cpus)
        shares = [_round_down(cpus / slots / p[0]) for cpus, p in zip(rooms, parts, strict=True)]
    else:
        left = size.cpus / slots - DRIVER_CPUS
        left -= sum(count * given for count, given, _, _ in parts if given is not None)
        open_shares = RESERVED_CPU_FRACTION + sum(
            share for _, given, share, _ in parts if given is None
        )
        shares = [_round_down(max(left, 0.0) * p[2] / open_shares / p[0]) for p in parts]
    worker_cpus, rollout_cpus = (
        given if given is not None else min(share, limit)
        for share, (_, given, _, limit) in zip(shares, parts, strict=True)
    )
    if cluster.cpus_per_worker is None:  # every worker finds its CPUs on one node
        hosts = [cpus for cpus, gpus in trainers.nodes if not gpus_per_worker or gpus > 0]
        share = max(hosts) / math.ceil(workers * slots / len(hosts))
        worker_cpus = min(worker_cpus, _round_down(share * WORKER_CPU_FRACTION))
    run = RunResources(
        workers=cluster.num_workers,
        cpus_per_worker=worker_cpus,
        gpus_per_worker=gpus_per_worker,
        num_rollout_actors=cluster.num_rollout_actors,
        cpus_per_rollout_actor=rollout_cpus,
        fewest_workers=fewest,
        node_pool_label=cluster.node_pool_label,
    )
    _check_cpus(dataclasses.replace(run, workers=fewest), size, slots)
    return run


def allocate_rollout_actors(config: Config, size: ClusterSize) -> RolloutResources:
    """Simulators where nothing else runs: as many as the CPUs, and on GPUs as they, have room for.

    Raises:
        UserError: policies shall run on GPUs, and there are none.
    """
    cluster, size = config.cluster, size.pool(SIM_POOL)
    cpus = cluster.cpus_per_rollout_actor or min(MAX_CPUS_PER_ROLLOUT_ACTOR, size.cpus)
    actors = max(1, math.floor(size.cpus / cpus + RESOURCE_EPS))
    if config.evaluate.device == "cpu":
        return RolloutResources(actors, cpus, 0.0, cluster.node_pool_label)
    places = gpu_worker_slots(size, cluster.gpus_per_rollout_actor)
    if not places:
        raise UserError(
            f"evaluate.device=cuda asks for {cluster.gpus_per_rollout_actor:g} GPUs a simulator, "
            f"and the cluster has {size.gpus:g} ({size}). Set evaluate.device=cpu or lower "
            "cluster.gpus_per_rollout_actor."
        )
    actors = min(actors, places)
    return RolloutResources(actors, cpus, cluster.gpus_per_rollout_actor, cluster.node_pool_label)


def max_concurrent_trials(config: Config, size: ClusterSize, trials: int) -> int:
    """How many of the trials run at a time: as configured, or as the GPUs or CPUs allow.

    Raises:
        UserError: what is configured makes no sense. That one trial fits is `allocate_run`'s to say.
    """
    if config.tune.max_concurrent_trials is not None:
        slots = config.tune.max_concurrent_trials
        if slots < 1:
            raise UserError(f"tune.max_concurrent_trials={slots} must be at least 1.")
        return min(slots, trials)
    trainers = size.pool(TRAIN_POOL)
    if config.train.device == "cuda":
        places = gpu_worker_slots(trainers, config.cluster.gpus_per_worker)
        most = places // config.cluster.num_workers
    else:
        wanted = config.tune.min_cpus_per_trial
        if config.cluster.cpus_per_worker is not None:
            wanted = max(wanted, config.cluster.num_workers * config.cluster.cpus_per_worker)
        most = math.floor(trainers.cpus / wanted + RESOURCE_EPS)
    return next(
        (slots for slots in range(min(most, trials), 1, -1) if _fits(config, size, slots)), 1
    )


def _fits(config: Config, size: ClusterSize, slots: int) -> bool:
    try:
        run = allocate_run(config, size, slots)
    except UserError:
        return False
    if not size.pending or size.pools:
        return True
    # Simulators of all trials find their places at once, on the nodes that are there; should no
    # other come, there must be room for the workers of one trial beside them.
    there = sum(cpus for cpus, _ in size.nodes[: -size.pending])
    return (
        slots * run.cpus_excluding_workers + run.min_workers * run.cpus_per_worker
        <= there + RESOURCE_EPS
    )


def gpu_worker_slots(size: ClusterSize, gpus_per_worker: float) -> int:
    """Workers that find their GPUs: whole ones on one node, fractions on one GPU."""
    if gpus_per_worker < 1.0:
        each = math.floor(1.0 / gpus_per_worker + RESOURCE_EPS)
        return sum(math.floor(gpus) * each for _, gpus in size.nodes)
    return sum(math.floor(gpus / gpus_per_worker + RESOURCE_EPS) for _, gpus in size.nodes)


def _check_gpus(
    workers: int, most_workers: int, gpus_per_worker: float, slots: int, size: ClusterSize
) -> None:
    if 0.0 < gpus_per_worker < 1.0 and most_workers > 1:
        raise UserError(
            f"cluster.gpus_per_worker={gpus_per_worker:g} with cluster.num_workers={most_workers}: "
            "trials can share a GPU, the workers of one run cannot (NCCL refuses two ranks on a "
            "device). Set cluster.num_workers=1 or cluster.gpus_per_worker=1."
        )
    places = gpu_worker_slots(size, gpus_per_worker) if gpus_per_worker else workers * slots
    if places < workers * slots:
        at_a_time = f" x {slots} trials at a time" if slots > 1 else ""
        raise UserError(
            f"This asks for {workers} worker(s) x {gpus_per_worker:g} GPU{at_a_time} = "
            f"{workers * gpus_per_worker * slots:g} GPUs, and the cluster has {size.gpus:g}, with "
            f"room for {places} such worker(s) ({size}). Lower {_concurrency_hint(slots)}"
            "cluster.num_workers or cluster.gpus_per_worker, or set train.device=cpu."
        )


def _check_cpus(run: RunResources, size: ClusterSize, slots: int) -> None:
    at_a_time = f" x {slots} trials at a time" if slots > 1 else ""
    if run.cpus * slots > size.cpus + RESOURCE_EPS:
        raise UserError(
            f"This asks for {run}{at_a_time} = {run.cpus * slots:g} CPUs, and the cluster has "
            f"{size.cpus:g} ({size}). Lower {_concurrency_hint(slots)}cluster.cpus_per_worker, "
            "cluster.num_workers or cluster.cpus_per_rollout_actor, or leave them null."
        )
    if min(run.cpus_per_worker, run.cpus_per_rollout_actor) <= 0.0:
        raise UserError(
            f"Nothing is left for some part of the run: {run}, of {size}. Lower what is given in "
            "cluster.*, or leave it null."
        )
    needs = (
        (TRAIN_POOL, "worker(s)", "num_workers", run.workers, run.cpus_per_worker),
        (
            SIM_POOL,
            "simulator(s)",
            "num_rollout_actors",
            run.num_rollout_actors,
            run.cpus_per_rollout_actor,
        ),
    )
    for pool, what, key, count, cpus_of_one in needs:
        nodes = size.pool(pool)
        places = sum(math.floor(cpus / cpus_of_one + RESOURCE_EPS) for cpus, _ in nodes.nodes)
        if places < count * slots:
            raise UserError(
                f"Only {places} of {count * slots} {what} with {cpus_of_one:g} CPUs find a node "
                f"({nodes}). Lower {_concurrency_hint(slots)}the CPUs of one in cluster.*, or "
                f"cluster.{key}."
            )


def _concurrency_hint(slots: int) -> str:
    return "tune.max_concurrent_trials, " if slots > 1 else ""


def _round_down(value: float) -> float:
    return round(math.floor(value / RESOURCE_EPS) * RESOURCE_EPS, 3)
