"""Episodes in one process: worlds that share a policy, lazy pictures, and what goes wrong."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from imf_ray.agents.pretrained import save_agent
from imf_ray.errors import UserError
from imf_ray.rollout.actor_pool import RolloutSpec
from imf_ray.rollout.artifacts import PATH_PICTURE, TRAJECTORY, VIDEO, ArtifactRequest
from imf_ray.rollout.episode_runner import EpisodeResult, EpisodeRunner
from imf_ray.rollout.policies import AgentEpisode, AgentPolicy, make_policy
from imf_ray.rollout.rollout_config import (
    RolloutConfig,
    agent_rollout_config,
    scripted_rollout_config,
)
from imf_ray.rollout.timing import Timer
from imf_ray.sim.base import SimEnv
from imf_ray.sim.transfer import SimTransferEnv
from imf_ray.video import decode_video
from tests.helpers import faulty_envs
from tests.helpers.configs import fresh_agent, tiny_config

SEEDS = range(700, 706)


def play(
    policy: Any,
    settings: RolloutConfig,
    seeds: Iterable[int],
    worlds: int,
    keep: ArtifactRequest | None = None,
) -> dict[int, EpisodeResult]:
    """Play all seeds, a free world taking the next one at once."""
    runner, waiting, played = EpisodeRunner(policy, settings, worlds), list(seeds), {}
    free = worlds
    while waiting or free < worlds:
        while waiting and free:
            runner.start(waiting.pop(0), keep or ArtifactRequest())
            free -= 1
        for episode in runner.advance():
            played[episode.record.seed] = episode
            free += 1
    return played


def outcomes(played: dict[int, EpisodeResult]) -> list[dict[str, Any]]:
    return [played[seed].record.outcome() for seed in sorted(played)]


def test_records_do_not_depend_on_how_many_worlds_share_the_policy(job: RolloutSpec) -> None:
    policy = make_policy(job.policy, job.settings)
    one, four = (play(policy, job.settings, SEEDS, worlds) for worlds in (1, 4))
    assert sorted(one) == list(SEEDS)
    assert len({str(played.record.initial_poses) for played in one.values()}) == len(SEEDS)
    assert outcomes(one) == outcomes(four)


def test_a_record_says_how_it_came_about(job: RolloutSpec) -> None:
    record = play(make_policy(job.policy, job.settings), job.settings, [700], 1)[700].record
    assert (record.steps, record.num_stages, record.error) == (24, 4, None)
    assert list(record.initial_poses) == ["cube"] and len(record.initial_poses["cube"]) == 7
    said = record.settings
    assert (said["num_action_steps"], said["inference_steps"], said["ema"]) == (8, 1, True)
    assert said["task"]["shadows"] is False and said["task"]["image_size"] == 48
    assert "stage 4" in said["success_description"] and said["noise_seed"] == 1
    robo_imi = {"obs_read_ms", "preprocess_ms", "inference_ms", "env_step_ms", "loop_total_ms"}
    assert robo_imi | {"inference_ms_p50", "inference_ms_p95", "wall_s"} == set(record.timing)
    assert record.timing["loop_total_ms"] >= record.timing["env_step_ms"] > 0.0


class Watched:
    """An agent whose actions and looks are noted; an eager one looks at every frame."""

    def __init__(self, inner: AgentPolicy, eager: bool) -> None:
        self.name, self.inner, self.eager = inner.name, inner, eager
        self.actions: list[np.ndarray] = []
        self.looks = 0

    def begin(self, world: SimEnv, seed: int) -> WatchedController:
        return WatchedController(self, self.inner.begin(world, seed))

    def plan(self, controllers: Sequence[WatchedController], watches: Sequence[Timer]) -> None:
        self.inner.plan([controller.inner for controller in controllers], watches)


class WatchedController:
    """The controller of a watched agent."""

    def __init__(self, policy: Watched, inner: AgentEpisode) -> None:
        self.policy, self.inner = policy, inner

    @property
    def needs_images(self) -> bool:
        return self.policy.eager or self.inner.needs_images

    @property
    def needs_prediction(self) -> bool:
        return self.inner.needs_prediction

    def observe(self, observation: dict[str, Any]) -> None:
        self.policy.looks += "images" in observation
        self.inner.observe(observation)

    def act(self) -> np.ndarray:
        self.policy.actions.append(self.inner.act())
        return self.policy.actions[-1]


def test_rendering_lazily_changes_no_action(job: RolloutSpec) -> None:
    """Bit for bit the actions of an episode in which every frame is rendered and offered."""
    inner = make_policy(job.policy, job.settings)
    assert isinstance(inner, AgentPolicy)
    lazy, eager = Watched(inner, eager=False), Watched(inner, eager=True)
    for policy in (lazy, eager):
        play(policy, job.settings, [700], 1)
    assert np.array_equal(np.stack(lazy.actions), np.stack(eager.actions))
    # The last two frames of every eight, and the first one of all: steps 0, 7, 8, 15, 16, 23.
    assert (lazy.looks, eager.looks) == (6, 24)


def test_a_policy_on_poses_is_told_them(demonstrations: Path, tmp_path: Path) -> None:
    config = tiny_config(
        demonstrations,
        "agent=state_imf_attnres",
        "agent.head.n_head=2",
        "task.max_episode_steps=16",
    )
    save_agent(tmp_path, fresh_agent(config), config, ema=None)
    job = RolloutSpec(str(tmp_path), agent_rollout_config(config, noise_seed=1), worlds=2)
    seen: list[torch.Tensor] = []
    policy = make_policy(job.policy, job.settings)
    predict = policy._agent.predict_action
    policy._agent.predict_action = lambda obs, **noise: (
        seen.append(obs["qpos"]) or predict(obs, **noise)
    )
    runner = EpisodeRunner(policy, job.settings, worlds=1)
    runner.start(7)
    (played,) = runner.advance()
    assert played.record.error is None and played.record.settings["privileged_pose_objects"] == [
        "cube"
    ]
    told = seen[0][0, -1, 16:]
    start = torch.tensor(played.record.initial_poses["cube"], dtype=torch.float32)
    assert torch.equal(told, start)
    assert len(seen) == 2 and not torch.equal(seen[1][0, -1, :16], seen[0][0, -1, :16])


def test_a_row_of_a_call_does_not_depend_on_the_others(job: RolloutSpec) -> None:
    """One episode alone in its padded call acts as in a full one."""
    policy = make_policy(job.policy, job.settings)
    alone = play(policy, job.settings, [703], 1)
    among = play(policy, job.settings, [700, 701, 702, 703], 4)
    assert alone[703].record.outcome() == among[703].record.outcome()


@pytest.fixture(scope="module")
def faulty(job: RolloutSpec) -> RolloutConfig:
    task = replace(job.settings.task, env_id=faulty_envs.ENV_ID)
    return replace(job.settings, task=task)


def test_a_broken_world_costs_its_own_episode_only(job: RolloutSpec, faulty: RolloutConfig) -> None:
    policy = make_policy(job.policy, faulty)
    seeds = [700, faulty_envs.RAISES, faulty_envs.RETURNS_NAN, faulty_envs.REWARDS_NAN, 701]
    records = {seed: p.record for seed, p in play(policy, faulty, seeds, 2).items()}
    assert records[faulty_envs.RAISES].error == "ArithmeticError: the simulation diverged"
    assert "state after step 3 is not finite" in str(records[faulty_envs.RETURNS_NAN].error)
    assert "reward of step 3 is nan" in str(records[faulty_envs.REWARDS_NAN].error)
    for seed in (700, 701):
        assert records[seed].error is None
        sound = play(policy, job.settings, [seed], 1)[seed].record
        assert (records[seed].steps, records[seed].episode_return) == (24, sound.episode_return)
    assert not any(records[seed].success for seed in seeds)


def test_an_episode_ends_with_its_time_or_its_steps(job: RolloutSpec) -> None:
    policy = make_policy(job.policy, job.settings)
    hurried = replace(job.settings, episode_timeout_s=1e-6)
    record = play(policy, hurried, [700], 1)[700].record
    assert "evaluate.episode_timeout_s=1e-06" in str(record.error) and not record.success


def test_a_policy_of_nan_is_a_failed_episode(job: RolloutSpec) -> None:
    policy = make_policy(job.policy, job.settings)
    assert isinstance(policy, AgentPolicy)
    with torch.no_grad():
        for weights in policy._agent.parameters():
            weights.fill_(float("nan"))
    record = play(policy, job.settings, [700], 1)[700].record
    assert record.error == "the policy's action at step 0 is not finite"


def test_a_damaged_policy_is_named(job: RolloutSpec, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a checkpoint"):
        make_policy(str(tmp_path / "nowhere"), job.settings)
    blind = replace(job.settings, camera_names=("top",))
    with pytest.raises(UserError, match=r"add \['r_vis', 'front'\] to data.camera_names"):
        make_policy(job.policy, blind)


def test_baselines(demonstrations: Path, job: RolloutSpec) -> None:
    """The expert succeeds, a recorded episode repeats itself, an untrained agent does not."""
    settings = scripted_rollout_config(tiny_config(demonstrations).task)
    expert = play(make_policy("expert", settings), settings, [0, 1], 2)
    replay = play(make_policy(f"replay:{demonstrations}", settings), settings, [0, 1], 2)
    for seed in (0, 1):
        assert expert[seed].record.success and expert[seed].record.max_stage == 4
        ours, theirs = expert[seed].record.outcome(), replay[seed].record.outcome()
        assert {**ours, "policy": ""} == {**theirs, "policy": ""}
        assert theirs["policy"].startswith("replay-")
    untrained = make_policy(f"untrained:{job.policy}", job.settings)
    record = play(untrained, job.settings, [700], 1)[700].record
    assert not record.success and record.policy.startswith("untrained-")
    with pytest.raises(UserError, match="no episode to play back"):
        make_policy(f"replay:{demonstrations / 'none'}", settings)
    as_roboimi = replace(settings, data_format="roboimi")  # whose actions are the end effectors'
    with pytest.raises(UserError, match=r"episode_0.*joint actions cannot be read"):
        make_policy(f"replay:{demonstrations}", as_roboimi)


def test_files_of_an_episode(job: RolloutSpec) -> None:
    policy = make_policy(job.policy, job.settings)
    keep = ArtifactRequest(video=True, trajectory=True)
    kept = play(policy, job.settings, [700], 1, keep)[700]
    bare = play(policy, job.settings, [700], 1)[700]
    assert kept.record.outcome() == bare.record.outcome() and not bare.files
    assert decode_video(kept.files[VIDEO]).shape == (12, 240, 320, 3)
    trajectory = np.load(io.BytesIO(kept.files[TRAJECTORY]), allow_pickle=False)
    assert trajectory["qpos"].shape == trajectory["action"].shape == (24, 16)
    assert trajectory["ee_poses"].shape == (25, 2, 7) and trajectory["pose_cube"].shape == (24, 7)
    assert trajectory["reward"].sum() == kept.record.episode_return
    assert kept.files[PATH_PICTURE].startswith(b"\x89PNG")


def test_the_path_is_drawn_where_the_tools_are(demonstrations: Path) -> None:
    """Red appears along the projected path of the expert's tools."""
    settings = scripted_rollout_config(tiny_config(demonstrations).task)
    policy = make_policy("expert", settings)
    files = play(policy, settings, [0], 1, ArtifactRequest(trajectory=True))[0].files
    picture = iio.imread(files[PATH_PICTURE])
    world = SimTransferEnv(render_images=False)
    world.reset(seed=0)
    path = np.load(io.BytesIO(files[TRAJECTORY]))["ee_poses"][:, :, :3].reshape(-1, 3)
    columns, rows = np.round(world.project(path)).astype(int).T
    inside = (columns >= 0) & (columns < 640) & (rows >= 0) & (rows < 480)
    drawn = picture[rows[inside], columns[inside]]
    assert inside.mean() > 0.9 and (drawn == (255, 0, 0)).all(axis=1).mean() > 0.95
