"""Policies saved by earlier versions load and act as they did; see tests/golden/README.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imf_ray.agents.pretrained import load_agent, make_untrained_agent
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


def test_every_kind_of_policy_is_there() -> None:
    names = {path.name.partition("_")[2] for path in FOLDERS}
    objectives = {"imf", "flow", "ddpm", "transformer", "multi_token"}
    assert names == objectives | {"state", "aux_poses", "aux_v_head", "exported"}
    assert max(file.stat().st_size for file in POLICIES.rglob("*")) < 100_000
