"""Rollouts on Ray actors: reproducible records, faulty envs, and errors of policies."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import ray

from imf_ray.allocation import RolloutResources
from imf_ray.errors import UserError
from imf_ray.rollout.actor_pool import CALL_OVERHEAD_S, RolloutSpec, rollout_metadata, run_episodes
from imf_ray.rollout.episode_runner import EpisodeResult
from imf_ray.rollout.policy_spec import PolicySpec
from imf_ray.rollout.records import EpisodeRecord
from tests.helpers import faulty_envs

pytestmark = pytest.mark.usefixtures("ray_cluster")
SEEDS = range(700, 724)
FREE_TIMEOUT_S = 60.0
ONE_ACTOR, TWO_ACTORS = RolloutResources(1, 0.5), RolloutResources(2, 0.5)


def outcomes(results: Iterable[EpisodeResult]) -> list[dict[str, Any]]:
    records = sorted((result.record for result in results), key=lambda record: record.seed)
    return [record.without_timing() for record in records]


def test_records_do_not_depend_on_actors_and_envs(spec: RolloutSpec) -> None:
    """Run 24 seeds on 1 x 1, 1 x 8 and 2 x 4 actors x envs, and with a killed actor."""
    one = outcomes(run_episodes(replace(spec, envs_per_actor=1), SEEDS, ONE_ACTOR))
    assert [record["seed"] for record in one] == list(SEEDS)
    assert len({str(record["initial_poses"]) for record in one}) == len(SEEDS)
    eight = outcomes(run_episodes(replace(spec, envs_per_actor=8), SEEDS, ONE_ACTOR))
    four_each = outcomes(run_episodes(spec, SEEDS, TWO_ACTORS))
    interrupted = []
    for result in run_episodes(spec, SEEDS, TWO_ACTORS):
        interrupted.append(result)
        if len(interrupted) == 6:
            os.kill(_actor_pids()[0], 9)
    assert one == eight == four_each == outcomes(interrupted)


def _actor_pids() -> list[int]:
    """Return the process ids of the live rollout actors of this session's cluster."""
    from ray._private.state import actors

    return [
        actor["Pid"]
        for actor in actors().values()
        if actor["ActorClassName"] == "RolloutActor" and actor["State"] == "ALIVE"
    ]


def test_an_env_that_kills_or_blocks_its_actor_fails_only_its_own_episode(
    spec: RolloutSpec,
) -> None:
    """Episodes that shared its actor are repeated."""
    task = replace(spec.config.task, env_id=faulty_envs.ENV_ID)
    config = replace(spec.config, task=task, episode_timeout_s=8.0)
    faulty = replace(spec, config=config, envs_per_actor=2)
    seeds = [faulty_envs.DIES, 700, faulty_envs.HANGS, 701]
    records: dict[int, EpisodeRecord] = {
        result.record.seed: result.record for result in run_episodes(faulty, seeds, TWO_ACTORS)
    }
    assert sorted(records) == sorted(seeds)
    assert "rollout actor was lost" in str(records[faulty_envs.DIES].error)
    assert "its call exceeded the time limit" in str(records[faulty_envs.HANGS].error)
    assert records[700].error is None and records[701].error is None
    assert records[faulty_envs.DIES].policy == records[700].policy


@pytest.mark.slow
def test_a_slow_consumer_does_not_count_against_time_limits(spec: RolloutSpec) -> None:
    """The consumer may take longer than the time limit while actors have finished their calls."""
    limit_s = 5.0
    slow = replace(spec, config=replace(spec.config, episode_timeout_s=limit_s), envs_per_actor=1)
    errors = []
    for result in run_episodes(slow, SEEDS[:12], TWO_ACTORS):
        errors.append(result.record.error)
        if len(errors) == 6:  # both actors are running an episode
            time.sleep(limit_s + CALL_OVERHEAD_S + 1.0)
    assert errors == [None] * 12


def test_a_policy_that_cannot_be_loaded_ends_the_rollout_and_frees_its_cpus(
    spec: RolloutSpec,
) -> None:
    """The error and the frames in its traceback may live on in a reference cycle."""
    missing = replace(spec, policy=PolicySpec.parse("/nowhere"))
    gc.disable()
    try:
        with pytest.raises(UserError, match="nowhere does not exist"):
            list(run_episodes(missing, SEEDS, TWO_ACTORS))
        until = time.monotonic() + FREE_TIMEOUT_S
        while ray.available_resources().get("CPU", 0.0) < ray.cluster_resources()["CPU"]:
            assert time.monotonic() < until, "the CPUs of the rollout actors are not free"
            time.sleep(0.1)
    finally:
        gc.enable()


def test_rollout_metadata_equal_those_of_the_records(spec: RolloutSpec) -> None:
    metadata = rollout_metadata(spec)
    (result,) = run_episodes(spec, [700], ONE_ACTOR)
    assert (metadata.policy, metadata.num_stages) == (result.record.policy, 4)
    assert metadata.settings == result.record.settings
