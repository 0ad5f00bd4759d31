"""Episodes in one process: envs that share a policy, rendering on demand, errors, artifacts."""

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
from imf_ray.rollout.artifacts import PATH_IMAGE, TRAJECTORY, VIDEO, ArtifactRequest, VideoFormat
from imf_ray.rollout.episode_runner import NO_ARTIFACTS, EpisodeResult, EpisodeRunner
from imf_ray.rollout.policies import AgentEpisode, AgentPolicy, make_policy
from imf_ray.rollout.policy_spec import EXPERT, PolicyKind, PolicySpec
from imf_ray.rollout.rollout_config import (
    RolloutConfig,
    agent_rollout_config,
    scripted_rollout_config,
)
from imf_ray.rollout.timing import Timer
from imf_ray.sim.base import SimEnv
from imf_ray.sim.tasks.transfer import SimTransferEnv
from imf_ray.video import decode_video, frame_rate
from tests.helpers import faulty_envs
from tests.helpers.configs import fresh_agent, tiny_config

SEEDS = range(700, 706)


def run(
    policy: Any,
    config: RolloutConfig,
    seeds: Iterable[int],
    num_envs: int = 1,
    artifacts: ArtifactRequest = NO_ARTIFACTS,
) -> dict[int, EpisodeResult]:
    """Run the episodes of all seeds. A free env starts the next seed at once."""
    runner, waiting, results = EpisodeRunner(policy, config, num_envs), list(seeds), {}
    num_free = num_envs
    while waiting or num_free < num_envs:
        while waiting and num_free:
            runner.start(waiting.pop(0), artifacts)
            num_free -= 1
        for result in runner.run_until_any_done():
            results[result.record.seed] = result
            num_free += 1
    return results


def outcomes(results: dict[int, EpisodeResult]) -> list[dict[str, Any]]:
    return [results[seed].record.without_timing() for seed in sorted(results)]


def test_records_do_not_depend_on_the_number_of_envs(spec: RolloutSpec) -> None:
    policy = make_policy(spec.policy, spec.config)
    one, four = (run(policy, spec.config, SEEDS, num_envs) for num_envs in (1, 4))
    assert sorted(one) == list(SEEDS)
    assert len({str(result.record.initial_poses) for result in one.values()}) == len(SEEDS)
    assert outcomes(one) == outcomes(four)


def test_a_record_has_settings_and_timing(spec: RolloutSpec) -> None:
    record = run(make_policy(spec.policy, spec.config), spec.config, [700])[700].record
    assert (record.steps, record.num_stages, record.error) == (24, 4, None)
    assert list(record.initial_poses) == ["cube"] and len(record.initial_poses["cube"]) == 7
    settings = record.settings
    assert (settings["num_action_steps"], settings["inference_steps"]) == (8, 1)
    assert settings["use_ema_weights"] is True and settings["noise_seed"] == 1
    assert settings["task"]["shadows"] is False and settings["task"]["image_size"] == 48
    assert "stage 4" in settings["success_description"]
    robo_imi = {"obs_read_ms", "preprocess_ms", "inference_ms", "env_step_ms", "loop_total_ms"}
    assert robo_imi | {"inference_ms_p50", "inference_ms_p95", "wall_s"} == set(record.timing)
    assert record.timing["loop_total_ms"] >= record.timing["env_step_ms"] > 0.0


class SpyPolicy:
    """A policy that records its actions and counts its images.

    Args:
        eager: request images in every environment step.
    """

    def __init__(self, inner: AgentPolicy, eager: bool) -> None:
        self.name, self.inner, self.eager = inner.name, inner, eager
        self.actions: list[np.ndarray] = []
        self.num_images = 0

    def start_episode(self, env: SimEnv, seed: int) -> SpyEpisode:
        return SpyEpisode(self, self.inner.start_episode(env, seed))

    def predict_chunks(self, episodes: Sequence[SpyEpisode], timers: Sequence[Timer]) -> None:
        self.inner.predict_chunks([episode.inner for episode in episodes], timers)


class SpyEpisode:
    """An episode of a `SpyPolicy`."""

    def __init__(self, policy: SpyPolicy, inner: AgentEpisode) -> None:
        self.policy, self.inner = policy, inner

    @property
    def needs_images(self) -> bool:
        return self.policy.eager or self.inner.needs_images

    @property
    def needs_prediction(self) -> bool:
        return self.inner.needs_prediction

    def observe(self, observation: dict[str, Any]) -> None:
        self.policy.num_images += "images" in observation
        self.inner.observe(observation)

    def act(self) -> np.ndarray:
        self.policy.actions.append(self.inner.act())
        return self.policy.actions[-1]


def test_rendering_on_demand_changes_no_action(spec: RolloutSpec) -> None:
    """Actions equal those of an episode with every frame rendered, bitwise."""
    inner = make_policy(spec.policy, spec.config)
    assert isinstance(inner, AgentPolicy)
    lazy, eager = SpyPolicy(inner, eager=False), SpyPolicy(inner, eager=True)
    for policy in (lazy, eager):
        run(policy, spec.config, [700])
    assert np.array_equal(np.stack(lazy.actions), np.stack(eager.actions))
    # Images of environment steps 0, 7, 8, 15, 16 and 23, the observations of the predictions.
    assert (lazy.num_images, eager.num_images) == (6, 24)


def test_a_policy_gets_the_poses_of_its_privileged_objects(
    demonstrations: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        demonstrations,
        "agent=state_imf_attnres",
        "agent.head.n_head=2",
        "task.max_episode_steps=16",
    )
    save_agent(tmp_path, fresh_agent(config), config, ema=None)
    rollout_config = agent_rollout_config(config, noise_seed=1)
    policy = make_policy(PolicySpec.parse(str(tmp_path)), rollout_config)
    assert isinstance(policy, AgentPolicy)
    observations: list[dict[str, Any]] = []
    predict = policy._agent.predict_action
    policy._agent.predict_action = lambda obs, **noise: (  # type: ignore[method-assign]
        observations.append(obs) or predict(obs, **noise)
    )
    record = run(policy, rollout_config, [7])[7].record
    assert record.error is None and record.settings["privileged_pose_objects"] == ["cube"]
    first, second = observations
    initial_pose = torch.tensor(record.initial_poses["cube"], dtype=torch.float32)
    assert first["object_poses"]["cube"].shape[1:] == (2, 7)
    assert torch.equal(first["object_poses"]["cube"][0, -1], initial_pose)
    assert not torch.equal(second["qpos"][0, -1], first["qpos"][0, -1])


def test_an_episode_does_not_depend_on_the_batch(spec: RolloutSpec) -> None:
    """An episode alone in a padded batch has the same record as in a full batch."""
    policy = make_policy(spec.policy, spec.config)
    single = run(policy, spec.config, [703])
    full = run(policy, spec.config, [700, 701, 702, 703], num_envs=4)
    assert single[703].record.without_timing() == full[703].record.without_timing()


@pytest.fixture(scope="module")
def faulty(spec: RolloutSpec) -> RolloutConfig:
    task = replace(spec.config.task, env_id=faulty_envs.ENV_ID)
    return replace(spec.config, task=task)


def test_a_faulty_env_fails_only_its_own_episode(spec: RolloutSpec, faulty: RolloutConfig) -> None:
    policy = make_policy(spec.policy, faulty)
    seeds = [700, faulty_envs.RAISES, faulty_envs.RETURNS_NAN, faulty_envs.REWARDS_NAN, 701]
    results = run(policy, faulty, seeds, num_envs=2)
    records = {seed: result.record for seed, result in results.items()}
    assert records[faulty_envs.RAISES].error == "ArithmeticError: the simulation diverged"
    error = str(records[faulty_envs.RETURNS_NAN].error)
    assert "state after environment step 3 is not finite" in error
    assert "reward of environment step 3 is nan" in str(records[faulty_envs.REWARDS_NAN].error)
    for seed in (700, 701):
        assert records[seed].error is None
        intact = run(policy, spec.config, [seed])[seed].record
        assert (records[seed].steps, records[seed].episode_return) == (24, intact.episode_return)
    assert not any(records[seed].success for seed in seeds)


def test_an_episode_that_exceeds_its_time_limit_fails(spec: RolloutSpec) -> None:
    policy = make_policy(spec.policy, spec.config)
    short = replace(spec.config, episode_timeout_s=1e-6)
    record = run(policy, short, [700])[700].record
    assert "evaluate.episode_timeout_s=1e-06" in str(record.error) and not record.success


def test_an_action_that_is_not_finite_fails_the_episode(spec: RolloutSpec) -> None:
    policy = make_policy(spec.policy, spec.config)
    assert isinstance(policy, AgentPolicy)
    with torch.no_grad():
        for weights in policy._agent.parameters():
            weights.fill_(float("nan"))
    record = run(policy, spec.config, [700])[700].record
    assert record.error == "the policy's action at environment step 0 is not finite"


def test_errors_name_a_missing_checkpoint_and_missing_cameras(
    demonstrations: Path, spec: RolloutSpec, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        make_policy(PolicySpec.parse(str(tmp_path / "nowhere")), spec.config)
    with pytest.raises(UserError, match=r"add \['r_vis', 'front'\] to data.camera_names"):
        agent_rollout_config(tiny_config(demonstrations), 0, camera_names=("top",))


def test_expert_and_replay_succeed_and_an_untrained_agent_fails(
    demonstrations: Path, spec: RolloutSpec
) -> None:
    config = scripted_rollout_config(tiny_config(demonstrations).task)
    recording = PolicySpec(PolicyKind.REPLAY, str(demonstrations))
    expert = run(make_policy(EXPERT, config), config, [0, 1], num_envs=2)
    replay = run(make_policy(recording, config), config, [0, 1], num_envs=2)
    for seed in (0, 1):
        assert expert[seed].record.success and expert[seed].record.max_stage == 4
        expert_record = expert[seed].record.without_timing()
        replay_record = replay[seed].record.without_timing()
        assert expert_record.pop("policy") == "expert"
        assert replay_record.pop("policy").startswith("replay-")
        assert expert_record == replay_record
    untrained = make_policy(replace(spec.policy, kind=PolicyKind.UNTRAINED), spec.config)
    record = run(untrained, spec.config, [700])[700].record
    assert not record.success and record.policy.startswith("untrained-")
    with pytest.raises(UserError, match=r"demonstrations\d+/none"):
        make_policy(replace(recording, path=str(demonstrations / "none")), config)
    as_roboimi = replace(config, data_format="roboimi")  # its actions are end-effector poses
    with pytest.raises(UserError, match=r"episode_0.*task\.action_space=joint"):
        make_policy(recording, as_roboimi)


def test_an_episode_has_the_requested_artifacts(spec: RolloutSpec) -> None:
    policy = make_policy(spec.policy, spec.config)
    request = ArtifactRequest(VideoFormat(), trajectory=True)
    result = run(policy, spec.config, [700], artifacts=request)[700]
    without = run(policy, spec.config, [700])[700]
    assert result.record.without_timing() == without.record.without_timing()
    assert not without.files
    assert decode_video(result.files[VIDEO]).shape == (12, 240, 320, 3)
    trajectory = np.load(io.BytesIO(result.files[TRAJECTORY]), allow_pickle=False)
    assert trajectory["qpos"].shape == trajectory["action"].shape == (24, 16)
    assert trajectory["ee_poses"].shape == (25, 2, 7) and trajectory["pose_cube"].shape == (24, 7)
    assert trajectory["reward"].sum() == result.record.episode_return
    assert result.files[PATH_IMAGE].startswith(b"\x89PNG")


def test_a_video_has_the_requested_size_and_rate(spec: RolloutSpec) -> None:
    """The task has 50 steps per second, and an episode 24."""
    policy = make_policy(spec.policy, spec.config)
    for video, num_frames, fps in [
        (VideoFormat(), 12, 25),
        (VideoFormat((60, 80), fps=100, speed=1), 24, 50),
        (VideoFormat((60, 80), fps=10, speed=2), 3, 10),
    ]:
        request = ArtifactRequest(video)
        content = run(policy, spec.config, [700], artifacts=request)[700].files[VIDEO]
        assert decode_video(content).shape == (num_frames, *video.size, 3)
        assert frame_rate(content) == fps


def test_the_path_image_shows_the_end_effectors(demonstrations: Path) -> None:
    """Red appears along the projected path of the expert's end effectors."""
    config = scripted_rollout_config(tiny_config(demonstrations).task)
    request = ArtifactRequest(trajectory=True)
    files = run(make_policy(EXPERT, config), config, [0], artifacts=request)[0].files
    image = iio.imread(files[PATH_IMAGE])
    env = SimTransferEnv(render_images=False)
    env.reset(seed=0)
    path = np.load(io.BytesIO(files[TRAJECTORY]))["ee_poses"][:, :, :3].reshape(-1, 3)
    columns, rows = np.round(env.project_to_pixels(path)).astype(int).T
    inside = (columns >= 0) & (columns < 640) & (rows >= 0) & (rows < 480)
    colors = image[rows[inside], columns[inside]]
    assert inside.mean() > 0.9 and (colors == (255, 0, 0)).all(axis=1).mean() > 0.95
