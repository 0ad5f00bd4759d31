"""Runs episodes in parallel on Ray actors; each seed is assigned to an actor with a free env.

An actor that dies is replaced. The result of an episode depends only on (policy, config, seed). So
the records do not depend on the number of actors and envs, nor on which actors died.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from imf_ray.allocation import RolloutResources
from imf_ray.errors import UserError
from imf_ray.rollout.artifacts import ArtifactRequest
from imf_ray.rollout.episode_runner import (
    NO_ARTIFACTS,
    EpisodeResult,
    EpisodeRunner,
    make_metadata,
)
from imf_ray.rollout.policies import describe_policy, make_policy
from imf_ray.rollout.policy_fit import make_fitting_env
from imf_ray.rollout.policy_spec import PolicySpec
from imf_ray.rollout.records import EpisodeRecord, RolloutMetadata
from imf_ray.rollout.rollout_config import THREADS, RolloutConfig
from imf_ray.rollout.rollout_metrics import RolloutMetrics
from imf_ray.schema import EvaluateConfig

MAX_ATTEMPTS = 3
"""Maximum number of attempts of an episode whose actor dies, and of starting an actor."""
START_TIMEOUT_S = 180.0
"""Time limit in seconds for an actor to import torch, load the policy and make its envs."""
CALL_OVERHEAD_S = 10.0
"""Seconds by which a call of an actor may exceed the time limits of its episodes."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RolloutSpec:
    """Description of a rollout: policy, execution settings, and number of envs per actor."""

    policy: PolicySpec
    config: RolloutConfig
    envs_per_actor: int = EvaluateConfig.envs_per_actor
    sweep: str | None = None
    """Name of the sweep, a tag of the metrics; None if the path of the policy tells it."""


def rollout_metadata(spec: RolloutSpec) -> RolloutMetadata:
    """Check that a policy can act in its env; return the metadata that all records have in common.

    For this, one env is made and closed. The agent is not loaded.

    Raises:
        UserError: the policy does not exist, the env cannot be made, or the policy cannot act in
            it.
    """
    name, needs = describe_policy(spec.policy, spec.config)
    env = make_fitting_env(spec.config, needs)
    metadata = make_metadata(name, spec.config, env)
    env.close()
    return metadata


@ray.remote
class RolloutActor:
    """Ray actor that runs one policy in several envs of its process.

    Args:
        number: counts the actors of a rollout, for Ray's dashboard.
    """

    def __init__(self, spec: RolloutSpec, number: int) -> None:
        self._spec, self._number = spec, number

    def __repr__(self) -> str:
        return f"rollout actor {self._number} of {self._spec.policy.short_name}"

    def start(self) -> RolloutMetadata:
        """Load the policy, make the envs and return the metadata of the records.

        This is not done in `__init__`, because Ray treats an exception there as the actor's death.
        """
        torch.set_num_threads(THREADS)
        gpus = ray.get_gpu_ids()
        # Render on the GPU that Ray gave to this actor, if Ray identifies it by its number.
        if gpus and str(gpus[0]).isdecimal():
            os.environ["MUJOCO_EGL_DEVICE_ID"] = str(gpus[0])
        policy = make_policy(self._spec.policy, self._spec.config)
        self._runner = EpisodeRunner(policy, self._spec.config, self._spec.envs_per_actor)
        self._runner.load_rendering()
        return self._runner.metadata

    def run(self, episodes: Mapping[int, ArtifactRequest]) -> list[EpisodeResult]:
        """Start the episodes of these seeds and run until at least one episode has ended.

        Returns:
            The results of all episodes that have ended. They may have been started by earlier
            calls.
        """
        for seed, artifacts in episodes.items():
            self._runner.start(seed, artifacts)
        return self._runner.run_until_any_done()


def run_episodes(
    spec: RolloutSpec,
    seeds: Sequence[int],
    resources: RolloutResources,
    artifacts: Mapping[int, ArtifactRequest] | None = None,
) -> Iterator[EpisodeResult]:
    """Run one episode per seed and yield each result when its episode ends.

    When an actor dies or is stuck, each of its episodes is repeated on an exclusive actor, which
    runs nothing else. An episode that is stuck there, or whose actor died `MAX_ATTEMPTS` times,
    gets a record with an error.

    Args:
        artifacts: requested files, by seed; a seed that is not listed gets none.

    Raises:
        UserError: the policy cannot be loaded, or no image can be rendered.
        RuntimeError: actors die repeatedly before they have started.
        ray.exceptions.RayTaskError: the policy or the task raised an error.
    """
    pool = RolloutActorPool(spec, seeds, resources, artifacts or {})
    try:
        yield from pool.run()
    finally:
        pool.stop()


@dataclass(eq=False)
class _ActorSlot:
    """An actor, its latest call, and the episodes that it runs."""

    actor: ActorHandle
    call: ray.ObjectRef
    deadline: float
    """Value of `time.monotonic()` after which the call counts as stuck."""
    ready: bool = False
    """True once the actor has started."""
    running: dict[int, ArtifactRequest] = field(default_factory=dict)
    """Requested files of each running episode, by seed."""
    exclusive: bool = False
    """True if the actor runs a single episode, because the episode's previous actor was lost."""


class RolloutActorPool:
    """Assigns seeds to actors, collects the results and replaces actors that are lost."""

    def __init__(
        self,
        spec: RolloutSpec,
        seeds: Sequence[int],
        resources: RolloutResources,
        artifacts: Mapping[int, ArtifactRequest],
    ) -> None:
        self._spec, self._artifacts = spec, artifacts
        self._metrics = RolloutMetrics(spec.policy, spec.sweep)
        self._actor_class = RolloutActor.options(**resources.ray_options)  # type: ignore[attr-defined]
        self._waiting_seeds = deque(dict.fromkeys(seeds))
        self._isolated_seeds: deque[int] = deque()
        self._crash_counts: Counter[int] = Counter()
        self._failed_starts, self._num_started = 0, 0
        self._metadata: RolloutMetadata | None = None
        self._num_actors = min(resources.num_actors, len(self._waiting_seeds))
        self._idle: list[_ActorSlot] = []
        self._busy = [self._start_actor() for _ in range(self._num_actors)]

    def wait_until_ready(self) -> None:
        """Wait until every actor has loaded its policy and made its envs."""
        calls = [slot.call for slot in self._busy]
        ray.wait(calls, num_returns=len(calls))

    def run(self) -> Iterator[EpisodeResult]:
        """Run all episodes and yield each result when its episode ends."""
        while self._busy and (self._waiting_seeds or self._isolated_seeds or self._any_running()):
            calls = {slot.call: slot for slot in self._busy}
            timeout = min(slot.deadline for slot in self._busy) - time.monotonic()
            ray.wait(list(calls), num_returns=1, timeout=max(0.0, timeout))
            # Find late calls before results are yielded: the consumer may spend longer on a result
            # than the time limit of the calls that are still running.
            done, pending = ray.wait(
                list(calls), num_returns=len(calls), timeout=0.0, fetch_local=False
            )
            late = [calls[call] for call in pending if time.monotonic() > calls[call].deadline]
            for call in done:
                yield from self._collect(calls[call])
            for slot in late:
                if not slot.ready and self._any_ready():
                    # The cluster has no resources for this actor yet. The others continue.
                    slot.deadline = time.monotonic() + START_TIMEOUT_S
                    continue
                yield from self._restart(slot, "its call exceeded the time limit", retry=False)
            self._assign_seeds()
            num_waiting = len(self._waiting_seeds) + len(self._isolated_seeds)
            self._metrics.set_load(len(self._busy), num_waiting)

    def stop(self) -> None:
        """Kill all actors that have started.

        Others end when they have started, because nothing refers to them any more. If they were
        killed, the dashboard would count their start as a failed task.
        """
        self._metrics.close()
        for slot in [*self._busy, *self._idle]:
            if slot.ready:
                ray.kill(slot.actor)
            # An error may keep the slot alive, by the frames in its traceback. The actor of a slot
            # that still exists would never end, and keep its CPUs.
            del slot.actor, slot.call
        self._busy.clear()
        self._idle.clear()

    def _any_ready(self) -> bool:
        return any(slot.ready for slot in [*self._busy, *self._idle])

    def _any_running(self) -> bool:
        return any(slot.running for slot in self._busy)

    def _collect(self, slot: _ActorSlot) -> Iterator[EpisodeResult]:
        """Mark the actor of a finished call as idle and yield the episodes that have ended."""
        try:
            result = ray.get(slot.call)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except RayError as error:  # the actor died, ran out of memory, or is unreachable
            yield from self._restart(slot, str(error).strip().splitlines()[0])
            return
        self._busy.remove(slot)
        self._idle.append(slot)
        if not slot.ready:
            slot.ready, self._metadata = True, result
            return
        for episode in result:
            del slot.running[episode.record.seed]
            slot.exclusive = False
            self._metrics.add(episode)
            yield episode

    def _assign_seeds(self) -> None:
        """Assign waiting seeds to free envs, one per actor in turn, and start their episodes.

        An isolated seed is assigned to an actor that runs nothing else.
        """
        assigned: dict[_ActorSlot, list[int]] = {slot: [] for slot in self._idle}
        for slot, seeds in assigned.items():
            if self._isolated_seeds and not slot.running:
                seeds.append(self._isolated_seeds.popleft())
                slot.exclusive = True
        for _ in range(self._spec.envs_per_actor):
            for slot, seeds in assigned.items():
                free_envs = self._spec.envs_per_actor - len(slot.running) - len(seeds)
                if self._waiting_seeds and free_envs > 0 and not slot.exclusive:
                    seeds.append(self._waiting_seeds.popleft())
        for slot, seeds in assigned.items():
            if seeds or slot.running:
                self._call(slot, {seed: self._artifacts.get(seed, NO_ARTIFACTS) for seed in seeds})

    def _call(self, slot: _ActorSlot, episodes: Mapping[int, ArtifactRequest]) -> None:
        """Start these episodes on an idle actor, in addition to those that it already runs."""
        slot.running |= episodes
        slot.call = slot.actor.run.remote(episodes)
        # Each episode counts only its own computing time, and the episodes of an actor take turns.
        # So a call can take the sum of their time limits.
        time_limit_s = self._spec.config.episode_timeout_s * len(slot.running)
        slot.deadline = time.monotonic() + time_limit_s + CALL_OVERHEAD_S
        self._idle.remove(slot)
        self._busy.append(slot)

    def _restart(
        self, slot: _ActorSlot, reason: str, retry: bool = True
    ) -> Iterator[EpisodeResult]:
        """Replace an actor that died or is stuck, and repeat its episodes.

        Args:
            retry: False gives the episode an error, instead of repeating it, if it was the only
                one of its actor.
        """
        ray.kill(slot.actor)
        self._busy.remove(slot)
        seeds = list(slot.running)
        log.warning("A rollout actor was lost (%s); episodes to repeat: %s", reason, seeds)
        self._metrics.add_lost_actor()
        if not slot.ready:
            if self._any_ready():
                return  # the other actors continue without this one
            self._failed_starts += 1
            if self._failed_starts >= MAX_ATTEMPTS * self._num_actors:
                raise RuntimeError(f"Rollout actors cannot be started: {reason}")
        if len(seeds) == 1:
            (seed,) = seeds
            self._crash_counts[seed] += 1
            if not retry or self._crash_counts[seed] == MAX_ATTEMPTS:
                seeds = []
                result = EpisodeResult(self._failed_record(seed, reason), {})
                self._metrics.add(result)
                yield result
        self._isolated_seeds.extend(seeds)
        self._busy.append(self._start_actor())

    def _failed_record(self, seed: int, reason: str) -> EpisodeRecord:
        assert self._metadata is not None
        return EpisodeRecord(
            seed=seed,
            success=False,
            max_stage=0,
            num_stages=self._metadata.num_stages,
            episode_return=0.0,
            steps=0,
            initial_poses={},
            policy=self._metadata.policy,
            settings=self._metadata.settings,
            error=f"the episode's rollout actor was lost: {reason}",
        )

    def _start_actor(self) -> _ActorSlot:
        """Create an actor and call its `start`, without waiting."""
        actor = self._actor_class.remote(self._spec, self._num_started)
        self._num_started += 1
        return _ActorSlot(actor, actor.start.remote(), time.monotonic() + START_TIMEOUT_S)
