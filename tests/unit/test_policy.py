"""`load_policy`: actions of a released policy, reproducible noise, and errors that name the key."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imf_ray.agents.pretrained import load_agent
from imf_ray.errors import UserError
from imf_ray.policy import LoadedPolicy, load_policy
from tests.helpers import REPO_ROOT

PATH = REPO_ROOT / "policies" / "sim_transfer"


@pytest.fixture(scope="module")
def policy() -> LoadedPolicy:
    return load_policy(PATH)


def observation(policy: LoadedPolicy, step: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    shape = (policy.image_size, policy.image_size, 3)
    return {
        "images": {name: rng.integers(0, 256, shape, np.uint8) for name in policy.camera_names},
        "qpos": rng.normal(size=policy.state_dim),
    }


def episode(policy: LoadedPolicy, steps: int, seed: int = 0) -> np.ndarray:
    policy.reset(seed)
    return np.stack([policy.act(observation(policy, step)) for step in range(steps)])


def test_attributes_describe_inputs_and_outputs(policy: LoadedPolicy) -> None:
    assert policy.camera_names == ("r_vis", "top", "front")
    assert (policy.image_size, policy.state_dim, policy.action_dim) == (96, 16, 16)
    assert (policy.action_space, policy.num_action_steps, policy.control_hz) == ("joint", 8, 50)
    assert policy.privileged_pose_objects == ()


def test_actions_are_those_of_the_agent(policy: LoadedPolicy) -> None:
    actions = episode(policy, 10)
    assert actions.shape == (10, 16) and actions.dtype == np.float32
    agent, _ = load_agent(PATH)
    generator = torch.Generator().manual_seed(0)
    for step in range(10):
        obs = observation(policy, step)
        batch = {
            "images": {
                name: torch.from_numpy(image)[None] for name, image in obs["images"].items()
            },
            "qpos": torch.from_numpy(obs["qpos"])[None].float(),
        }
        expected = agent.select_action(batch, generator=generator)[0]
        np.testing.assert_array_equal(actions[step], expected)


def test_the_seed_determines_the_noise(policy: LoadedPolicy) -> None:
    first = episode(policy, 9)
    np.testing.assert_array_equal(episode(policy, 9), first)
    np.testing.assert_array_equal(episode(load_policy(PATH), 9), first)
    assert not np.array_equal(episode(policy, 9, seed=1), first)


def test_tensors_are_accepted_and_images_only_needed_for_predictions(policy: LoadedPolicy) -> None:
    expected = episode(policy, 9)
    policy.reset(seed=0)
    rendered = []
    for step in range(9):
        obs = observation(policy, step)
        obs["qpos"] = torch.from_numpy(obs["qpos"])
        if policy.needs_images:
            rendered.append(step)
            obs["images"] = {name: torch.from_numpy(i) for name, i in obs["images"].items()}
        else:
            del obs["images"]
        np.testing.assert_array_equal(policy.act(obs), expected[step])
    assert rendered == [0, 7, 8]


def test_wrong_observations_are_named(policy: LoadedPolicy) -> None:
    policy.reset()
    obs = observation(policy)
    images = obs["images"]
    for wrong, message in (
        ({"images": images}, r"observation\['qpos'\] is missing \(given: images\)"),
        (obs | {"qpos": np.zeros(14)}, r"observation\['qpos'\] has shape \(14,\); .* \(16,\)"),
        ({"qpos": obs["qpos"]}, r"observation\['images'\]\['r_vis'\] is missing"),
        (obs | {"images": images | {"top": np.zeros((480, 640, 3), np.uint8)}}, r"\['top'\] has"),
        (obs | {"images": images | {"top": images["top"] / 255}}, r"\['top'\] is torch.float64"),
    ):
        with pytest.raises(ValueError, match=message):
            policy.act(wrong)


def test_a_folder_without_a_policy_is_refused() -> None:
    with pytest.raises(UserError, match="is not a checkpoint"):
        load_policy(REPO_ROOT / "docs")


def test_a_damaged_policy_is_refused(tmp_path: Path) -> None:
    shutil.copytree(PATH, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"weights of .*cut cannot be loaded"):
        load_policy(tmp_path / "cut")
    (tmp_path / "cut" / "config.yaml").write_text("data: {}\n")
    with pytest.raises(UserError, match=r"is not a checkpoint: config\.yaml lacks"):
        load_policy(tmp_path / "cut")
