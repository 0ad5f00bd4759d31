"""A policy that cannot act in its environment is refused before Ray starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from imf_ray.agents.pretrained import make_agent, save_agent
from imf_ray.config import load_config
from imf_ray.data.episodes import EpisodeMetadata
from imf_ray.data.hdf5.check import check_episode
from imf_ray.errors import UserError
from imf_ray.rollout import policies
from imf_ray.rollout.actor_pool import RolloutSpec, rollout_metadata
from imf_ray.rollout.policy_fit import PolicyNeeds, check_agent_fits, make_fitting_env
from imf_ray.rollout.policy_spec import EXPERT, PolicyKind, PolicySpec
from imf_ray.rollout.rollout_config import agent_rollout_config, scripted_rollout_config
from imf_ray.schema import Config
from imf_ray.training import trainer
from tests.helpers.episode_files import write_act

STATE_ONLY = ("agent=state_imf_attnres",)
POINT = """
env_id: imf_ray_tests/Point-v0
control_hz: 10
adapter:
  module: tests.helpers.point_env
  cameras: {wide: camera.wide}
  qpos: [robot.position]
"""


def check(*overrides: str) -> None:
    check_agent_fits(load_config(overrides), renders_here=False, overview=False)


def test_a_policy_that_fits_is_accepted(tmp_path: Path) -> None:
    check()
    check("task=sim_air_insert")
    check("task.action_space=ee")
    check(*STATE_ONLY)
    (tmp_path / "point.yaml").write_text(POINT)
    cameras = ("data.camera_names=[wide]",)
    check(f"task={tmp_path}/point.yaml", "agent.state_dim=2", "agent.action_dim=2", *cameras)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["agent.action_dim=14"], ["agent.action_dim=14", "16"]),
        (["agent.state_dim=14"], ["agent.state_dim=14", "16"]),
        (["agent.state_dim=14", "agent.action_dim=14"], ["agent.state_dim", "agent.action_dim"]),
        (["data.camera_names=[wrist]"], ["camera_names", "wrist", "front"]),
        (["task.control_hz=25"], ["task.control_hz=25", "50"]),
        (["task.env_id=imf_ray/SimTransfr-v0"], ["task.env_id=imf_ray/SimTransfr-v0"]),
        (["task.env_id=nobody/Env-v0"], ["task.env_id=nobody/Env-v0"]),
        (["task.env_id=no_module:Env-v0"], ["task.env_id=no_module:Env-v0", "no_module"]),
        (["task.env_id=CartPole-v1"], ["task.env_id=CartPole-v1", "task.adapter"]),
        (
            [*STATE_ONLY, "agent.privileged_pose_objects=[cube,ball]"],
            ["agent.privileged_pose_objects", "ball", "cube"],
        ),
    ],
)
def test_the_option_and_both_values_are_named(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        check(*overrides)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["agent.state_dim=5"], ["agent.state_dim=5", "2"]),
        (["agent.action_dim=16"], ["agent.action_dim=16", "2"]),
        (["task.adapter.qpos=[robot.nothing]"], ["robot.nothing", "robot.position"]),
        (["task.adapter.module=no_module"], ["task.adapter.module=no_module"]),
        (["task.adapter.kwargs={fast: true}"], ["fast", "task.adapter.kwargs"]),
        (["data.camera_names=[tall]"], ["tall", "data.camera_names", "wide"]),
        (["task.action_space=ee"], ["task.action_space=ee"]),
    ],
)
def test_adapted_envs_are_checked_too(tmp_path: Path, options: list[str], words: list[str]) -> None:
    (tmp_path / "point.yaml").write_text(POINT)
    fitting = ["agent.state_dim=2", "agent.action_dim=2", "data.camera_names=[wide]"]
    with pytest.raises(UserError) as caught:
        check(f"task={tmp_path}/point.yaml", *fitting, *options)
    assert all(word in str(caught.value) for word in words), caught.value


def _checkpoint(folder: Path, *overrides: str) -> tuple[PolicySpec, Config]:
    """Write an agent with untrained weights; return it and its configuration."""
    config = load_config([*STATE_ONLY, "agent.head.n_emb=16", "agent.head.n_layer=1", *overrides])
    folder.mkdir()
    save_agent(folder, make_agent(config.agent, config.task.action_space), config, ema=None)
    return PolicySpec(PolicyKind.CHECKPOINT, str(folder)), config


def test_a_checkpoint_is_refused_in_another_environment(tmp_path: Path) -> None:
    narrow, config = _checkpoint(tmp_path / "narrow", "agent.action_dim=14")
    for policy in (narrow, replace(narrow, kind=PolicyKind.UNTRAINED)):
        with pytest.raises(UserError, match=r"agent\.action_dim=14.* 16 "):
            rollout_metadata(RolloutSpec(policy, agent_rollout_config(config, 0)))
    joint, config = _checkpoint(tmp_path / "joint")
    rollout_metadata(RolloutSpec(joint, agent_rollout_config(config, 0)))
    in_ee = replace(config, task=replace(config.task, action_space="ee"))
    with pytest.raises(UserError, match=r"joint.*task\.action_space=ee"):
        rollout_metadata(RolloutSpec(joint, agent_rollout_config(in_ee, 0)))


@pytest.fixture
def checked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes are checked in this process, as `check_dataset` does in others."""

    def check_here(_: Path, files: list[Path], __: str) -> dict[Path, EpisodeMetadata]:
        return {file: check_episode(file) for file in files}

    monkeypatch.setattr(policies, "check_dataset", check_here)


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (7, 7),
        (np.array([7]), 7),
        ("7", 7),
        (7.0, 7),
        ("seven", None),
        ("", None),
        (7.5, None),
        (-7, None),
        (np.array([7, 8]), None),
        (float("nan"), None),
        (True, None),
        (np.void(b"7x"), None),
    ],
)
def test_an_attribute_seed_of_another_program_is_read_or_ignored(
    seed: Any, expected: int | None, tmp_path: Path, checked_here: None
) -> None:
    path = tmp_path / "episode_0.hdf5"
    write_act(path)
    with h5py.File(path, "r+") as file:
        file.attrs["seed"] = seed
        file.attrs["control_hz"] = "50"
    assert check_episode(path).seed == expected
    policy = policies.ReplayPolicy(path, "auto", "joint")
    assert policy.needs.control_hz == 50
    assert (7 in policy._recording_by_seed) == (expected is not None)


def test_a_replay_is_refused_in_another_environment(tmp_path: Path, checked_here: None) -> None:
    write_act(tmp_path / "episode_0.hdf5")
    config = scripted_rollout_config(load_config().task)
    for path in (tmp_path, tmp_path / "episode_0.hdf5"):
        with pytest.raises(UserError, match=r"episode_0\.hdf5=14.* 16 "):
            rollout_metadata(RolloutSpec(PolicySpec(PolicyKind.REPLAY, str(path)), config))
    write_act(tmp_path / "episode_1.hdf5", dim=16)
    with pytest.raises(UserError, match=r"episode_1\.hdf5.* 16 .*episode_0\.hdf5.* 14\."):
        rollout_metadata(RolloutSpec(PolicySpec(PolicyKind.REPLAY, str(tmp_path)), config))
    rollout_metadata(RolloutSpec(EXPERT, config))


def test_a_replay_is_refused_at_another_control_rate() -> None:
    config, needs = scripted_rollout_config(load_config().task), PolicyNeeds(control_hz=25)
    with pytest.raises(UserError, match=r"25 Hz.*task\.control_hz=50"):
        make_fitting_env(config, needs)


def test_training_needs_the_environment_only_for_validation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer, "load_run", lambda config: config)
    validation = ["train.rollout_val_freq_epochs=1", "train.rollout_validate_on_checkpoint=true"]
    for overrides in (["task.env_id=nobody/Env-v0"], ["agent.action_dim=14"]):
        trainer.prepare_run(load_config(overrides))
        for option in validation:
            with pytest.raises(UserError, match=r"train\.rollout_validate_on_checkpoint=false"):
                trainer.prepare_run(load_config([*overrides, option]))
        with pytest.raises(UserError):  # as every trial of a sweep is prepared
            trainer.prepare_run(trainer.enable_validation(load_config(overrides)))
