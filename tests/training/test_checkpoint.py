"""When checkpoints are written and validated, and what of one is handed on."""

from pathlib import Path

import pytest
import torch

from imf_ray.agents.pretrained import load_agent
from imf_ray.errors import UserError
from imf_ray.schema import TrainConfig
from imf_ray.training.checkpoint import (
    CheckpointSchedule,
    export_policy,
    read_checkpoint,
    save_checkpoint,
)
from tests.conftest import fresh_agent, tiny_config


def _steps(train: TrainConfig) -> tuple[list[int], list[int]]:
    """The steps after which a checkpoint is due, and those of them that are validated."""
    schedule = CheckpointSchedule(train, steps_per_epoch=4)
    due = [step for step in range(1, train.max_steps + 1) if schedule.due(step)]
    return due, [step for step in due if schedule.validated(step)]


def test_without_validation_only_save_freq_and_the_end_count() -> None:
    train = TrainConfig(max_steps=10, save_freq=3)
    assert _steps(train) == ([3, 6, 9, 10], [])


def test_validation_by_epochs_adds_checkpoints_and_judges_the_last() -> None:
    train = TrainConfig(max_steps=10, save_freq=5, rollout_val_freq_epochs=2)
    assert _steps(train) == ([5, 8, 10], [8, 10])


def test_validation_on_checkpoint_adds_none() -> None:
    train = TrainConfig(max_steps=10, save_freq=4, rollout_validate_on_checkpoint=True)
    assert _steps(train) == ([4, 8, 10], [4, 8, 10])


def test_an_exported_policy_is_the_average_and_nothing_of_the_training(
    demonstrations: Path, tmp_path: Path
) -> None:
    config = tiny_config(demonstrations)
    average = {name: value.clone() for name, value in fresh_agent(config, 1).state_dict().items()}
    saved = save_checkpoint(tmp_path, 7, {"loss": 1.0}, fresh_agent(config), config, average, {})
    policy = export_policy(saved.path, tmp_path / "policies" / "mine")
    assert read_checkpoint(policy.path).metrics == {"step": 7}
    assert not [path for path in policy.path.iterdir() if path.suffix == ".pt"]
    assert str(demonstrations) not in (policy.path / "config.yaml").read_text()
    agent, settings = load_agent(policy.path)
    assert settings.agent == config.agent and settings.task == config.task
    for name, value in agent.state_dict().items():
        assert torch.equal(value, average[name]), name
    with pytest.raises(UserError, match="exists: remove it"):
        export_policy(saved.path, policy.path)
