"""Rollouts on Ray: the same records whatever the number of actors and worlds, and whoever dies."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from imf_ray.errors import UserError
from imf_ray.rollout.actor_pool import CALL_OVERHEAD_S, RolloutSpec, rollout_metadata, run_episodes
from imf_ray.rollout.episode_runner import EpisodeResult
from imf_ray.rollout.records import EpisodeRecord
from tests.helpers import faulty_envs

pytestmark = pytest.mark.usefixtures("ray_cluster")
SEEDS = range(700, 764)
OPTIONS = {"num_cpus": 0.5}


def outcomes(played: Iterable[EpisodeResult]) -> list[dict[str, Any]]:
    records = sorted((episode.record for episode in played), key=lambda record: record.seed)
    return [record.outcome() for record in records]


def test_records_of_64_seeds_are_identical(job: RolloutSpec) -> None:
    """1 x 1, 1 x 8 and 2 x 4 actors x worlds, and with an actor killed on the way."""
    one = outcomes(run_episodes(replace(job, worlds=1), SEEDS, 1, OPTIONS))
    assert [record["seed"] for record in one] == list(SEEDS)
    assert len({str(record["initial_poses"]) for record in one}) == len(SEEDS)
    eight = outcomes(run_episodes(replace(job, worlds=8), SEEDS, 1, OPTIONS))
    four_each = outcomes(run_episodes(job, SEEDS, 2, OPTIONS))
    interrupted = []
    for episode in run_episodes(job, SEEDS, 2, OPTIONS):
        interrupted.append(episode)
        if len(interrupted) == 10:
            os.kill(_simulators()[0], 9)
    assert one == eight == four_each == outcomes(interrupted)


def _simulators() -> list[int]:
    """Process ids of the live rollout actors of this session's cluster."""
    from ray._private.state import actors

    return [
        actor["Pid"]
        for actor in actors().values()
        if actor["ActorClassName"] == "RolloutActor" and actor["State"] == "ALIVE"
    ]


def test_a_world_that_kills_or_blocks_its_simulator_is_found_out(job: RolloutSpec) -> None:
    """It ends in records with errors; the episodes that shared its actor are played."""
    task = replace(job.settings.task, env_id=faulty_envs.ENV_ID)
    settings = replace(job.settings, task=task, episode_timeout_s=2.0)
    faulty = replace(job, settings=settings, worlds=2)
    seeds = [faulty_envs.DIES, 700, faulty_envs.HANGS, 701]
    records: dict[int, EpisodeRecord] = {
        episode.record.seed: episode.record for episode in run_episodes(faulty, seeds, 2, OPTIONS)
    }
    assert sorted(records) == sorted(seeds)
    assert "simulator was lost" in str(records[faulty_envs.DIES].error)
    assert "did not come back in time" in str(records[faulty_envs.HANGS].error)
    assert records[700].error is None and records[701].error is None
    assert records[faulty_envs.DIES].policy == records[700].policy


def test_whoever_takes_the_episodes_may_take_long(job: RolloutSpec) -> None:
    """Longer than the time limit of those that are played meanwhile, and have come back."""
    limit_s = 5.0
    settings = replace(job.settings, episode_timeout_s=limit_s)
    errors = []
    for played in run_episodes(replace(job, settings=settings, worlds=1), SEEDS[:12], 2, OPTIONS):
        errors.append(played.record.error)
        if len(errors) == 6:  # both simulators are at work
            time.sleep(limit_s + CALL_OVERHEAD_S + 1.0)
    assert errors == [None] * 12


def test_a_damaged_policy_ends_the_judgement_with_its_error(job: RolloutSpec) -> None:
    with pytest.raises(UserError, match="nowhere is not a checkpoint"):
        list(run_episodes(replace(job, policy="/nowhere"), SEEDS, 2, OPTIONS))


def test_a_job_tells_what_its_records_will_say(job: RolloutSpec) -> None:
    identity = rollout_metadata(job)
    (played,) = run_episodes(job, [700], 1, OPTIONS)
    assert (identity.policy, identity.num_stages) == (played.record.policy, 4)
    assert identity.settings == played.record.settings
