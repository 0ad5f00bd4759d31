"""The weights that a run starts with are part of its identity, by content."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from imf_ray.agents.initial_weights import policy_digest
from imf_ray.agents.pretrained import make_agent, save_agent
from imf_ray.checkpoint_dir import MANIFEST_FILE
from imf_ray.errors import UserError
from imf_ray.schema import Config
from imf_ray.training.run_dir import RunDir
from imf_ray.training.run_records import InitRecord
from imf_ray.training.trainer import starting_weights
from tests.helpers.configs import tiny_config


def start_from(policy: Path | None) -> Config:
    override = () if policy is None else (f"train.init_from={policy}",)
    return tiny_config("data", *override)


@pytest.fixture
def make_policy(tmp_path: Path) -> Callable[[int], Path]:
    def make(seed: int) -> Path:
        folder, config = tmp_path / f"policy_{seed}", start_from(None)
        folder.mkdir()
        torch.manual_seed(seed)
        save_agent(folder, make_agent(config.agent, "joint"), config, ema=None)
        (folder / MANIFEST_FILE).write_text("{}")
        return folder

    return make


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def resume_later(run_dir: RunDir, policy: Path) -> None:
    """Write what a run started from `policy` leaves: its record and a checkpoint."""
    run_dir.write_init_record(InitRecord(str(policy), "all", policy_digest(str(policy)), []))
    run_dir.checkpoint(2).mkdir(parents=True)
    (run_dir.checkpoint(2) / MANIFEST_FILE).write_text("{}")


def test_a_new_run_reads_the_weights(run_dir: RunDir, make_policy: Callable[[int], Path]) -> None:
    policy = make_policy(1)
    initial = starting_weights(start_from(policy), run_dir)
    assert initial is not None and initial.digest == policy_digest(str(policy))


def test_a_resumed_run_reads_no_weights(
    run_dir: RunDir, make_policy: Callable[[int], Path]
) -> None:
    policy = make_policy(1)
    resume_later(run_dir, policy)
    assert starting_weights(start_from(policy), run_dir) is None
    copy = shutil.copytree(policy, policy.with_name("copy"))
    assert starting_weights(start_from(copy), run_dir) is None
    shutil.rmtree(policy)
    assert starting_weights(start_from(policy), run_dir) is None


def test_a_run_started_from_another_policy_is_refused(
    run_dir: RunDir, make_policy: Callable[[int], Path]
) -> None:
    first, second = make_policy(1), make_policy(2)
    resume_later(run_dir, first)
    with pytest.raises(UserError, match=rf"{first}.*train.init_from={second}"):
        starting_weights(start_from(second), run_dir)
    shutil.rmtree(first)
    second.rename(first)
    with pytest.raises(UserError, match=r"train.init_from"):
        starting_weights(start_from(first), run_dir)
