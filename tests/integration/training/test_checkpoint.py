"""Checkpoints: the schedule, crashes while saving, full disks, forged files, export."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from imf_ray.agents.pretrained import load_agent
from imf_ray.checkpoint_dir import (
    DIGEST_KEY,
    MANIFEST_FILE,
    PARTIAL_PREFIX,
    TRAIN_STATE_FILE,
    VALIDATION_FILE,
    clear_validation,
    file_digest,
    manifest_digest,
    read_checkpoint,
    write_validation,
)
from imf_ray.errors import UserError
from imf_ray.schema import TrainConfig
from imf_ray.training.checkpoint import (
    export_policy,
    load_train_state,
    save_checkpoint,
)
from imf_ray.training.reporting import CheckpointSchedule
from imf_ray.training.run_dir import RunDir
from tests.helpers import REPO_ROOT
from tests.helpers.configs import fresh_agent, tiny_config


def _steps(train: TrainConfig) -> tuple[list[int], list[int]]:
    """Return the steps with a checkpoint, and those with a validation."""
    schedule = CheckpointSchedule(train, steps_per_epoch=4)
    saved = [step for step in range(1, train.max_steps + 1) if schedule.should_save(step)]
    return saved, [step for step in saved if schedule.should_validate(step)]


def test_without_validation_checkpoints_follow_save_freq() -> None:
    train = TrainConfig(max_steps=10, save_freq=3)
    assert _steps(train) == ([3, 6, 9, 10], [])


def test_validation_by_epochs_adds_checkpoints_and_validates_the_last_one() -> None:
    train = TrainConfig(max_steps=10, save_freq=5, rollout_val_freq_epochs=2)
    assert _steps(train) == ([5, 8, 10], [8, 10])


def test_validation_on_checkpoint_adds_no_checkpoint() -> None:
    train = TrainConfig(max_steps=10, save_freq=4, rollout_validate_on_checkpoint=True)
    assert _steps(train) == ([4, 8, 10], [4, 8, 10])


def test_an_exported_policy_has_the_ema_weights_and_no_train_state(
    demonstrations: Path, tmp_path: Path
) -> None:
    config = tiny_config(demonstrations)
    ema = {name: value.clone() for name, value in fresh_agent(config, 1).state_dict().items()}
    saved = save_checkpoint(tmp_path, 7, {"loss": 1.0}, fresh_agent(config), config, ema, {})
    policy = export_policy(saved.path, tmp_path / "policies" / "mine")
    assert read_checkpoint(policy.path).metrics == {"step": 7}
    assert not [path for path in policy.path.iterdir() if path.suffix == ".pt"]
    assert str(demonstrations) not in (policy.path / "config.yaml").read_text()
    agent, settings = load_agent(policy.path)
    assert settings.agent == config.agent and settings.task == config.task
    for name, value in agent.state_dict().items():
        assert torch.equal(value, ema[name]), name
    with pytest.raises(UserError, match=r"exists\. Remove it"):
        export_policy(saved.path, policy.path)


@pytest.mark.parametrize("kills", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_a_process_killed_while_saving_leaves_valid_checkpoints(
    demonstrations: Path, tmp_path: Path, kills: int
) -> None:
    command = [sys.executable, "-m", "tests.helpers.crash_during_save", str(tmp_path)]
    done = subprocess.run(
        [*command, str(demonstrations), str(kills)],
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > kills / 10  # enough kills left an incomplete checkpoint


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True
    )
    if mount.returncode:
        pytest.skip(f"a file system cannot be mounted: {mount.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("state_size", [0, 100_000], ids=["in weights", "in train state"])
def test_a_full_disk_leaves_earlier_checkpoints_valid(
    small_disk: Path, demonstrations: Path, state_size: int
) -> None:
    config = tiny_config(demonstrations)
    agent, state = fresh_agent(config), {"moments": torch.zeros(state_size)}
    with pytest.raises(UserError, match=r"small/checkpoint_\d+ cannot be written.*MiB are free"):
        for step in range(1, 100):
            save_checkpoint(small_disk, step, {}, agent, config, None, state)
    saved = RunDir(small_disk).list_checkpoints()
    assert [checkpoint.step for checkpoint in saved] == list(range(1, step)) and step > 1
    assert not list(small_disk.glob(f"{PARTIAL_PREFIX}*"))


def test_a_pickle_that_would_run_code_is_not_loaded(demonstrations: Path, tmp_path: Path) -> None:
    config = tiny_config(demonstrations)
    saved = save_checkpoint(tmp_path / "run", 1, {}, fresh_agent(config), config, None, {})
    marker = tmp_path / "ran"

    class Harmful:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {marker}",)

    (saved.path / TRAIN_STATE_FILE).write_bytes(pickle.dumps(Harmful(), protocol=2))
    assert RunDir(tmp_path / "run").newest_checkpoint() is None  # its digest differs
    manifest = json.loads((saved.path / MANIFEST_FILE).read_text())
    manifest["files"][TRAIN_STATE_FILE] = file_digest(saved.path / TRAIN_STATE_FILE)
    (saved.path / MANIFEST_FILE).write_text(json.dumps(manifest))
    assert RunDir(tmp_path / "run").newest_checkpoint() is None  # the manifest's own digest differs
    del manifest[DIGEST_KEY]
    manifest[DIGEST_KEY] = manifest_digest(manifest)
    (saved.path / MANIFEST_FILE).write_text(json.dumps(manifest))
    assert RunDir(tmp_path / "run").newest_checkpoint() is not None  # all digests are forged
    with pytest.raises(UserError, match=r"trainer_state.pt cannot be loaded safely"):
        load_train_state(saved.path, "cpu")
    assert not marker.exists()


def test_a_checkpoint_is_kept_while_its_validation_is_retried(
    demonstrations: Path, tmp_path: Path
) -> None:
    config = tiny_config(demonstrations)
    assert RunDir(tmp_path).newest_step() is None
    for step in (1, 2, 3, 4):
        saved = save_checkpoint(tmp_path, step, {}, fresh_agent(config), config, None, {})
        write_validation(saved.path, {"validation_error": "no resources"} if step < 3 else {"a": 1})
    first = RunDir(tmp_path).list_checkpoints()[0]
    assert first.has_validation and not first.validation_succeeded
    cleared = clear_validation(first)
    assert not cleared.has_validation and not (first.path / VALIDATION_FILE).exists()
    RunDir(tmp_path).prune_checkpoints(keep_last_k=2, pending=lambda step: True)
    assert [checkpoint.step for checkpoint in RunDir(tmp_path).list_checkpoints()] == [1, 3, 4]
    assert RunDir(tmp_path).newest_step() == 4
