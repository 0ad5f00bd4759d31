"""Parallel rollouts: seeds go to whichever actor is free, a dead actor is replaced.

An episode is a function of (policy, seed, settings), so the records do not depend on how many
actors there were, nor on which of them died.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, ActorUnavailableError

from imf_ray.agents.pretrained import load_agent, weights_digest
from imf_ray.config import TaskConfig
from imf_ray.rollout.records import EpisodeRecord
from imf_ray.rollout.runner import (
    AgentPolicy,
    ExpertPolicy,
    Policy,
    RolloutSettings,
    make_env,
    run_episode,
)
from imf_ray.rollout.video import EpisodeVideo

EXPERT = "expert"
MAX_DEATHS_PER_SEED = 3
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RolloutJob:
    """What every actor of one judgement is made of.

    `policy` is a checkpoint folder or `EXPERT`.
    """

    policy: str
    settings: RolloutSettings
    ema: bool = True
    device: str = "cpu"


@ray.remote
class RolloutActor:
    """One policy, one environment, one renderer, in one process."""

    def __init__(self, job: RolloutJob) -> None:
        torch.set_num_threads(1)
        self._settings = job.settings
        self._policy = make_policy(job)
        self._env = make_env(job.settings)

    def run(self, seed: int, video: str | None = None) -> EpisodeRecord:
        """Play one episode; with `video`, also write what the front camera saw to that file."""
        if video is None:
            return run_episode(self._policy, self._env, seed, self._settings)
        with EpisodeVideo(Path(video)) as recording:
            return run_episode(self._policy, self._env, seed, self._settings, recording.add)


def make_policy(job: RolloutJob) -> Policy:
    """Load the policy of a job in this process."""
    if job.policy == EXPERT:
        return ExpertPolicy()
    agent, config = load_agent(Path(job.policy), ema=job.ema, device=job.device)
    name = weights_digest(Path(job.policy), ema=job.ema)
    return AgentPolicy(agent, name, job.settings.noise_seed, config.agent.num_action_steps)


def expert_settings(task: TaskConfig) -> RolloutSettings:
    """Settings under which the expert, who acts in joint space and looks at nothing, is judged."""
    joint = TaskConfig(**{**vars(task), "action_space": "joint"})
    return RolloutSettings(joint, camera_names=(), noise_seed=0)


def run_episodes(
    job: RolloutJob,
    seeds: Sequence[int],
    actors: int,
    options: Mapping[str, Any],
    videos: Mapping[int, str] | None = None,
) -> Iterator[EpisodeRecord]:
    """Play all seeds on `actors` actors; yield records as they come.

    Args:
        options: Ray options of each actor, such as `num_cpus`.
        videos: files by seed.

    Raises:
        RuntimeError: an episode killed its actor `MAX_DEATHS_PER_SEED` times.
        ray.exceptions.RayTaskError: an episode raised an error.
    """
    waiting = deque(seeds)
    deaths: dict[int, int] = dict.fromkeys(seeds, 0)
    videos = videos or {}
    make = RolloutActor.options(**options)  # type: ignore[attr-defined]
    idle: list[ActorHandle] = [make.remote(job) for _ in range(min(actors, len(waiting)))]
    running: dict[ray.ObjectRef, tuple[ActorHandle, int]] = {}
    try:
        while waiting or running:
            while waiting and idle:
                actor, seed = idle.pop(), waiting.popleft()
                running[actor.run.remote(seed, videos.get(seed))] = actor, seed
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            actor, seed = running.pop(done)
            try:
                record = ray.get(done)
            except (ActorDiedError, ActorUnavailableError) as error:
                deaths[seed] += 1
                if deaths[seed] == MAX_DEATHS_PER_SEED:
                    raise RuntimeError(
                        f"The episode of seed {seed} killed its simulator {deaths[seed]} times: "
                        f"{error}"
                    ) from error
                log.warning("A simulator died; the episode of seed %d is repeated", seed)
                ray.kill(actor)
                actor = make.remote(job)
                waiting.appendleft(seed)
            else:
                yield record
            idle.append(actor)
    finally:
        for actor in [*idle, *(actor for actor, _ in running.values())]:
            ray.kill(actor)
