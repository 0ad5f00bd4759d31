"""Rollouts: the same records whatever the number of actors, and what a dead actor costs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from imf_ray.agents.pretrained import build_agent, save_agent
from imf_ray.data.index import build_index
from imf_ray.data.statistics import compute_statistics
from imf_ray.rollout.actors import EXPERT, RolloutJob, expert_settings, make_policy, run_episodes
from imf_ray.rollout.records import EpisodeRecord, summarize
from imf_ray.rollout.runner import make_env, run_episode
from imf_ray.training.validation import rollout_settings
from tests.conftest import tiny_config

SEEDS = range(700, 708)


@pytest.fixture(scope="module")
def job(demonstrations: Path, tmp_path_factory: pytest.TempPathFactory) -> RolloutJob:
    """An untrained agent, rolled out for 60 steps."""
    config = tiny_config(demonstrations, "task.max_episode_steps=60")
    index = build_index(config)
    torch.manual_seed(0)
    stats = compute_statistics(index.episodes, "action", index.digest)
    agent = build_agent(config.agent, config.task.action_space, stats)
    folder = tmp_path_factory.mktemp("agent")
    save_agent(folder, agent, config, ema=None)
    return RolloutJob(str(folder), rollout_settings(config, noise_seed=1))


def _outcomes(records: list[EpisodeRecord]) -> list[dict[str, object]]:
    return [record.outcome() for record in sorted(records, key=lambda record: record.seed)]


@pytest.mark.usefixtures("ray_cluster")
def test_records_do_not_depend_on_the_number_of_actors(job: RolloutJob) -> None:
    options = {"num_cpus": 0.5}
    one, two, three = (
        _outcomes(list(run_episodes(job, SEEDS, actors, options))) for actors in (1, 2, 3)
    )
    assert [record["seed"] for record in one] == list(SEEDS)
    assert len({str(record["initial_cube_pose"]) for record in one}) == len(SEEDS)
    assert one == two == three


@pytest.mark.usefixtures("ray_cluster")
def test_a_dead_actor_is_replaced_and_its_seed_repeated(job: RolloutJob) -> None:
    calm = _outcomes(list(run_episodes(job, SEEDS[:3], 1, {"num_cpus": 0.5})))
    records = []
    for record in run_episodes(job, SEEDS[:3], 1, {"num_cpus": 0.5}):
        records.append(record)
        if len(records) == 1:
            _kill_rollout_actors()
    assert _outcomes(records) == calm


def _kill_rollout_actors() -> None:
    """SIGKILL the processes of all rollout actors of this session's cluster."""
    from ray._private.state import actors

    for actor in actors().values():
        if actor["ActorClassName"] == "RolloutActor" and actor["State"] == "ALIVE":
            os.kill(actor["Pid"], 9)


def test_rendering_only_where_the_policy_looks_changes_nothing(job: RolloutJob) -> None:
    """The lazy episode equals one in which every frame is rendered and offered."""
    policy = make_policy(job)
    env = make_env(job.settings)
    lazy = run_episode(policy, env, 700, job.settings)

    class Eager:
        name, wants_images = policy.name, True

        def reset(self, world, seed) -> None:
            policy.reset(world, seed)

        def act(self, observation, watch):
            return policy.act(observation, watch)

    eager = run_episode(Eager(), env, 700, job.settings)
    assert lazy.outcome() == eager.outcome()


@pytest.mark.usefixtures("ray_cluster")
def test_the_expert_scales_the_table_and_videos_are_written(
    demonstrations: Path, tmp_path: Path
) -> None:
    settings = expert_settings(tiny_config(demonstrations).task)
    video = tmp_path / "expert.mp4"
    records = list(
        run_episodes(RolloutJob(EXPERT, settings), [5], 1, {"num_cpus": 0.5}, {5: str(video)})
    )
    summary = summarize(records)
    assert summary.success_rate == 1.0 and summary.stage_shares[4] == 1.0
    assert records[0].steps == 400 and records[0].reward_sum > 100.0
    assert video.stat().st_size > 10_000


def test_summary_and_interval() -> None:
    records = [
        EpisodeRecord(seed, seed < 45, 4 if seed < 45 else 2, 10.0, 400, (), "p")
        for seed in range(50)
    ]
    summary = summarize(records)
    assert summary.success_rate == 0.9
    assert (round(summary.success_low, 2), round(summary.success_high, 2)) == (0.79, 0.96)
    assert summary.stage_shares == {1: 1.0, 2: 1.0, 3: 0.9, 4: 0.9}
    with pytest.raises(ValueError, match="nothing to summarize"):
        summarize([])
