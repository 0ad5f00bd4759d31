"""Policies saved by earlier versions load and act as they did; see tests/golden/README.md."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imf_ray.agents.pretrained import load_agent, make_untrained_agent
from imf_ray.errors import UserError
from imf_ray.policy import load_policy
from tests.helpers import REPO_ROOT

POLICIES = REPO_ROOT / "tests" / "golden" / "policies"
EXPECTED = np.load(POLICIES / "expected.npz")
FOLDERS = sorted(path for path in POLICIES.iterdir() if path.is_dir())
CAMERAS = ("top", "front")


def observation() -> dict[str, Any]:
    return {
        "images": {name: EXPECTED[f"observation/{name}"] for name in CAMERAS},
        "qpos": EXPECTED["observation/qpos"],
        "object_poses": {"cube": EXPECTED["observation/cube"]},
    }


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_an_old_policy_acts_as_it_did(folder: Path) -> None:
    policy = load_policy(folder, seed=0)
    expected = EXPECTED[f"actions/{folder.name}"]  # one and a half chunks
    actions = np.stack([policy.act(observation()) for _ in expected])
    np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-4)
    changed = observation()
    changed["qpos"] = -changed["qpos"]
    changed["images"] = {name: 255 - image for name, image in changed["images"].items()}
    policy.reset(seed=0)
    assert not np.allclose(policy.act(changed), expected[0], atol=1e-2)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_an_old_policy_is_the_untrained_baseline_as_well(folder: Path) -> None:
    trained, untrained = load_agent(folder)[0], make_untrained_agent(folder)[0]
    normalizers = trained.action_normalizer.mean, untrained.action_normalizer.mean
    np.testing.assert_array_equal(*normalizers)


def test_both_sets_of_weights_are_used_and_none_may_be_missing(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(POLICIES / "b93fc56_imf", tmp_path / "checkpoint_00000002"))
    expected = EXPECTED["actions/b93fc56_imf"][0]
    np.testing.assert_allclose(load_policy(folder).act(observation()), expected, atol=1e-4)
    trained = load_policy(folder, ema=False).act(observation())
    assert not np.allclose(trained, expected, atol=1e-2)
    (folder / "trainer_state.pt").unlink()  # only training needs it
    load_policy(folder)
    (folder / "model_ema.safetensors").unlink()
    with pytest.raises(UserError, match=r"model_ema\.safetensors is missing"):
        load_policy(folder)


def test_a_run_is_refused_with_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(POLICIES / "b93fc56_imf", "runs/mine/checkpoint_00000002")
    for path in ("runs/mine", "runs", "mine", "runs/mine/checkpoint_2", tmp_path / "runs"):
        with pytest.raises(UserError, match="Use runs/mine/checkpoint_00000002"):
            load_policy(path)


def test_every_kind_of_policy_is_there() -> None:
    names = {path.name.partition("_")[2] for path in FOLDERS}
    objectives = {"imf", "flow", "ddpm", "transformer", "multi_token"}
    assert names == objectives | {"state", "aux_poses", "aux_v_head", "exported"}
    assert max(file.stat().st_size for file in POLICIES.rglob("*")) < 100_000
