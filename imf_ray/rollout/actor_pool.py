"""Parallel rollouts: seeds go to whichever actor has a free world, a dead actor is replaced.

An episode is a function of (policy, settings, seed), so the records do not depend on how many
actors and worlds there were, nor on which of them died.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from imf_ray.allocation import RolloutResources
from imf_ray.errors import UserError
from imf_ray.rollout.artifacts import ArtifactRequest
from imf_ray.rollout.episode_runner import EpisodeResult, EpisodeRunner
from imf_ray.rollout.policies import Policy, make_policy
from imf_ray.rollout.records import EpisodeRecord
from imf_ray.rollout.rollout_config import (
    THREADS,
    RolloutConfig,
    make_rollout_env,
    recorded_settings,
)
from imf_ray.schema import EvaluateConfig
from imf_ray.sim.base import SimEnv

MAX_ATTEMPTS = 3
"""How often an episode may kill an actor that it has for itself, and an actor fail to start."""
START_LIMIT_S = 180.0
"""What an actor may take to import torch, load the policy and make its worlds."""
CALL_OVERHEAD_S = 10.0
"""What a call may take beyond the time limits of its episodes."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RolloutSpec:
    """What every actor of one judgement is made of; `policy` as `make_policy` understands it."""

    policy: str
    settings: RolloutConfig
    worlds: int = EvaluateConfig.envs_per_actor
    """Environments of one actor."""


class RolloutMetadata(NamedTuple):
    """What all records of a job have in common."""

    policy: str
    settings: Mapping[str, Any]
    num_stages: int


def rollout_metadata(job: RolloutSpec) -> RolloutMetadata:
    """Make the job's policy and world once, and tell what its records will say of them.

    Raises:
        UserError: the policy cannot be made.
        ValueError: the task cannot be made.
    """
    return _identity(job, make_policy(job.policy, job.settings))


def _identity(job: RolloutSpec, policy: Policy) -> RolloutMetadata:
    env = make_rollout_env(job.settings)
    world = cast(SimEnv, env.unwrapped)
    settings = recorded_settings(job.settings, world)
    env.close()
    return RolloutMetadata(policy.name, settings, world.num_stages)


@ray.remote
class RolloutActor:
    """One policy and its worlds in one process."""

    def __init__(self, job: RolloutSpec) -> None:
        self._job = job

    def start(self) -> RolloutMetadata:
        """Load the policy and make the worlds; here, as an error in `__init__` is a death."""
        torch.set_num_threads(THREADS)
        gpus = ray.get_gpu_ids()
        # The renderer takes the GPU of the policy, where that is named by its number.
        if gpus and str(gpus[0]).isdecimal():
            os.environ["MUJOCO_EGL_DEVICE_ID"] = str(gpus[0])
        policy = make_policy(self._job.policy, self._job.settings)
        self._runner = EpisodeRunner(policy, self._job.settings, self._job.worlds)
        return _identity(self._job, policy)

    def advance(self, episodes: Mapping[int, ArtifactRequest]) -> list[EpisodeResult]:
        """Begin the episodes of these seeds, and play until at least one has ended."""
        for seed, keep in episodes.items():
            self._runner.start(seed, keep)
        return self._runner.advance()


@dataclass(eq=False)
class _ActorSlot:
    """An actor, the call that it works on, and the episodes that it plays."""

    actor: ActorHandle
    call: ray.ObjectRef
    deadline: float
    ready: bool = False
    playing: dict[int, ArtifactRequest] = field(default_factory=dict)
    alone: bool = False
    """Whether it plays a suspect, which shares its actor with nobody."""


def run_episodes(
    job: RolloutSpec,
    seeds: Sequence[int],
    resources: RolloutResources,
    keep: Mapping[int, ArtifactRequest] | None = None,
) -> Iterator[EpisodeResult]:
    """Play all seeds on `actors` actors; yield each episode as it ends.

    When an actor dies or is stuck, its episodes are repeated, each with an actor to itself, so that
    one that kills or blocks its actor is found out; it ends in a record with an error.

    Args:
        keep: files to make, by seed.

    Raises:
        UserError: the policy cannot be made.
        RuntimeError: actors die before they play.
        ray.exceptions.RayTaskError: the policy or the task raised an error.
    """
    judge = RolloutActorPool(job, seeds, resources, keep or {})
    try:
        yield from judge.play()
    finally:
        judge.stop()


class RolloutActorPool:
    """Hands seeds out and collects what comes back."""

    def __init__(
        self,
        job: RolloutSpec,
        seeds: Sequence[int],
        resources: RolloutResources,
        keep: Mapping[int, ArtifactRequest],
    ) -> None:
        self._job, self._keep = job, keep
        self._make = RolloutActor.options(**resources.ray_options)  # type: ignore[attr-defined]
        self._waiting = deque(dict.fromkeys(seeds))
        self._suspects: deque[int] = deque()
        self._deaths: Counter[int] = Counter()
        self._failed_starts = 0
        self._identity: RolloutMetadata | None = None
        self._resting: list[_ActorSlot] = []
        self._actors = min(resources.num_actors, len(self._waiting))
        self._busy = [self._new_simulator() for _ in range(self._actors)]

    def play(self) -> Iterator[EpisodeResult]:
        while self._busy and (self._waiting or self._suspects or self._any_playing()):
            calls = {simulator.call: simulator for simulator in self._busy}
            patience = min(simulator.deadline for simulator in self._busy) - time.monotonic()
            ray.wait(list(calls), num_returns=1, timeout=max(0.0, patience))
            # Before anything is handed over: whoever takes it may take longer than the time limit.
            back = {"num_returns": len(calls), "timeout": 0.0, "fetch_local": False}
            done, under_way = ray.wait(list(calls), **back)
            late = [calls[c] for c in under_way if time.monotonic() > calls[c].deadline]
            for call in done:
                yield from self._collect(calls[call])
            for simulator in late:
                if not simulator.ready and self._any_ready():
                    # The cluster has no room for it yet: the others go on.
                    simulator.deadline = time.monotonic() + START_LIMIT_S
                    continue
                yield from self._replace(simulator, "it did not come back in time", final=True)
            self._hand_out()

    def stop(self) -> None:
        """End all actors."""
        for simulator in [*self._busy, *self._resting]:
            ray.kill(simulator.actor)

    def _any_ready(self) -> bool:
        return any(simulator.ready for simulator in [*self._busy, *self._resting])

    def _any_playing(self) -> bool:
        return any(simulator.playing for simulator in self._busy)

    def _collect(self, simulator: _ActorSlot) -> Iterator[EpisodeResult]:
        try:
            result = ray.get(simulator.call)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except RayError as error:  # it died, was killed for its memory, or is out of reach
            yield from self._replace(simulator, str(error).strip().splitlines()[0])
            return
        self._busy.remove(simulator)
        self._resting.append(simulator)
        if not simulator.ready:
            simulator.ready, self._identity = True, result
            return
        for episode in result:
            del simulator.playing[episode.record.seed]
            simulator.alone = False
            yield episode

    def _hand_out(self) -> None:
        """Give seeds to free worlds, one by one in turn; a suspect is played alone."""
        given: dict[_ActorSlot, dict[int, ArtifactRequest]] = {s: {} for s in self._resting}
        for simulator, episodes in given.items():
            if self._suspects and not simulator.playing:
                self._give(self._suspects.popleft(), episodes)
                simulator.alone = True
        for _ in range(self._job.worlds):
            for simulator, episodes in given.items():
                room = self._job.worlds - len(simulator.playing) - len(episodes)
                if self._waiting and room > 0 and not simulator.alone:
                    self._give(self._waiting.popleft(), episodes)
        for simulator, episodes in given.items():
            if episodes or simulator.playing:
                simulator.playing |= episodes
                simulator.call = simulator.actor.advance.remote(episodes)
                # An episode ends itself after its own time; they share the actor's.
                limits = self._job.settings.episode_timeout_s * len(simulator.playing)
                simulator.deadline = time.monotonic() + limits + CALL_OVERHEAD_S
                self._resting.remove(simulator)
                self._busy.append(simulator)

    def _give(self, seed: int, episodes: dict[int, ArtifactRequest]) -> None:
        episodes[seed] = self._keep.get(seed, ArtifactRequest())

    def _replace(
        self, simulator: _ActorSlot, reason: str, final: bool = False
    ) -> Iterator[EpisodeResult]:
        """Take a new actor for one that died or is stuck; its episodes are played again.

        Args:
            final: an episode that was alone is not tried again.
        """
        ray.kill(simulator.actor)
        self._busy.remove(simulator)
        seeds = list(simulator.playing)
        log.warning("A simulator was lost (%s); episodes to repeat: %s", reason, seeds)
        if not simulator.ready:
            if self._any_ready():
                return  # the others go on without it
            self._failed_starts += 1
            if self._failed_starts >= MAX_ATTEMPTS * self._actors:
                raise RuntimeError(f"Simulators cannot be started: {reason}")
        if len(seeds) == 1:
            (seed,) = seeds
            self._deaths[seed] += 1
            if final or self._deaths[seed] == MAX_ATTEMPTS:
                seeds = []
                yield EpisodeResult(self._lost(seed, reason), {})
        self._suspects.extend(seeds)
        self._busy.append(self._new_simulator())

    def _lost(self, seed: int, reason: str) -> EpisodeRecord:
        assert self._identity is not None
        return EpisodeRecord(
            seed=seed,
            success=False,
            max_stage=0,
            num_stages=self._identity.num_stages,
            episode_return=0.0,
            steps=0,
            initial_poses={},
            policy=self._identity.policy,
            settings=self._identity.settings,
            error=f"its simulator was lost: {reason}",
        )

    def _new_simulator(self) -> _ActorSlot:
        actor = self._make.remote(self._job)
        return _ActorSlot(actor, actor.start.remote(), time.monotonic() + START_LIMIT_S)
