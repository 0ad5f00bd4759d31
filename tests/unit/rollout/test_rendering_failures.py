"""An episode whose images cannot be rendered ends the rollout, instead of counting as a failure."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imf_ray.config import load_config
from imf_ray.errors import UserError
from imf_ray.rollout import policy_fit
from imf_ray.rollout.actor_pool import RolloutSpec, rollout_metadata
from imf_ray.rollout.artifacts import ArtifactRequest, VideoFormat
from imf_ray.rollout.episode_runner import EpisodeRunner
from imf_ray.rollout.policies import make_policy
from imf_ray.rollout.policy_fit import check_agent_fits
from imf_ray.rollout.policy_spec import EXPERT
from imf_ray.rollout.rollout_config import scripted_rollout_config
from imf_ray.rollout.seed_evaluation import Evaluation
from imf_ray.sim.rendering_errors import RenderingError
from imf_ray.sim.tasks.transfer import SimTransferEnv

NO_IMAGE = RenderingError("No image can be rendered with MUJOCO_GL=osmesa.")


@pytest.fixture(autouse=True)
def no_opengl(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(env: SimTransferEnv, *size: tuple[int, int]) -> None:
        raise NO_IMAGE

    policy_fit._check_rendering.cache_clear()
    monkeypatch.setattr(SimTransferEnv, "render_overview", fail)
    monkeypatch.setattr(SimTransferEnv, "render_cameras", fail)


def test_a_rollout_ends_with_the_message() -> None:
    config = scripted_rollout_config(load_config(["task.max_episode_steps=2"]).task)
    runner = EpisodeRunner(make_policy(EXPERT, config), config, num_envs=1)
    runner.start(0, ArtifactRequest(VideoFormat()))
    with pytest.raises(RenderingError, match="MUJOCO_GL=osmesa"):
        runner.run_until_any_done()


def test_rendering_is_loaded_before_the_first_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(scripted_rollout_config(load_config().task), camera_names=("top",))
    runner = EpisodeRunner(make_policy(EXPERT, config), config, num_envs=2)
    with pytest.raises(RenderingError, match="MUJOCO_GL=osmesa"):
        runner.load_rendering()
    rendered: list[SimTransferEnv] = []
    monkeypatch.setattr(SimTransferEnv, "render_cameras", lambda env: rendered.append(env))
    runner.load_rendering()
    assert len(set(map(id, rendered))) == 2


def test_a_rollout_without_images_needs_no_opengl() -> None:
    config = scripted_rollout_config(load_config(["task.max_episode_steps=2"]).task)
    runner = EpisodeRunner(make_policy(EXPERT, config), config, num_envs=1)
    runner.load_rendering()
    runner.start(0)
    (result,) = runner.run_until_any_done()
    assert result.record.error is None and result.record.steps == 2


def test_only_what_is_rendered_is_checked() -> None:
    images, state = load_config(), load_config(["agent=state_imf_attnres"])
    for config, overview in ((images, False), (state, True)):
        with pytest.raises(UserError, match="MUJOCO_GL=osmesa"):
            check_agent_fits(config, renders_here=True, overview=overview)
        check_agent_fits(config, renders_here=False, overview=overview)
    check_agent_fits(state, renders_here=True, overview=False)


def test_the_error_crosses_processes() -> None:
    copy = pickle.loads(pickle.dumps(NO_IMAGE))
    assert type(copy) is RenderingError and str(copy) == str(NO_IMAGE)


def test_recorded_episodes_need_no_opengl(tmp_path: Path) -> None:
    config = scripted_rollout_config(load_config(["task.max_episode_steps=2"]).task)
    spec = RolloutSpec(EXPERT, replace(config, camera_names=("top",)))
    evaluation = Evaluation(spec, rollout_metadata(spec), tmp_path)
    with pytest.raises(UserError, match="MUJOCO_GL=osmesa"):
        evaluation.check_rendering([0], save_trajectories=False, video=False)
    runner = EpisodeRunner(make_policy(EXPERT, spec.config), spec.config, num_envs=1)
    runner.start(0)
    (result,) = runner.run_until_any_done()
    evaluation.store.add(result.record)
    evaluation.check_rendering([0], save_trajectories=False, video=False)
    for requested in ({"save_trajectories": True, "video": False}, {"seeds": [0, 1]}):
        options: dict[str, Any] = {
            "seeds": [0],
            "save_trajectories": False,
            "video": False,
            **requested,
        }
        with pytest.raises(UserError, match="MUJOCO_GL=osmesa"):
            evaluation.check_rendering(**options)
