"""A validation that fails, in part or as a whole, leaves a result and a reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray.train

from imf_ray.allocation import RolloutResources
from imf_ray.checkpoint_dir import VALIDATED_STEP, VALIDATION_ERROR
from imf_ray.claims import claim
from imf_ray.config import load_config
from imf_ray.errors import StorageError, UserError
from imf_ray.rollout.episode_runner import EpisodeResult
from imf_ray.rollout.records import EpisodeRecord
from imf_ray.rollout.seed_evaluation import evaluation_dir
from imf_ray.training import validation
from imf_ray.training.run_dir import RunDir

RECORD = EpisodeRecord(
    seed=400_000,
    success=True,
    max_stage=4,
    num_stages=4,
    episode_return=1.0,
    steps=10,
    initial_poses={},
    policy="p",
    settings={},
)


def validate(run_dir: RunDir) -> dict[str, Any]:
    checkpoint = run_dir.checkpoint(2)
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").touch()
    reported = ray.train.Checkpoint(str(checkpoint))
    return validation.validate(reported, run_dir, load_config(), [], RolloutResources(1, 0.5))


def test_the_reason_of_a_failure_is_a_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("the scene is missing")

    monkeypatch.setattr(validation, "run_episodes", fail)
    metrics = validate(RunDir(tmp_path))
    assert metrics == {VALIDATION_ERROR: "RuntimeError: the scene is missing"}
    (stored,) = RunDir(tmp_path).read_validations()
    assert stored == {VALIDATED_STEP: 2, **metrics}


def test_a_result_remains_if_its_records_cannot_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr("imf_ray.files.RETRY_DELAYS_S", ())
    monkeypatch.setattr(validation, "run_episodes", lambda *_: [EpisodeResult(RECORD, {})])
    monkeypatch.setattr(validation, "store_records", fail)
    metrics = validate(RunDir(tmp_path))
    assert metrics["rollout/success_rate"] == 1.0
    assert "the disk is full" in metrics[VALIDATION_ERROR]


def test_records_that_an_evaluation_writes_are_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("imf_ray.claims.BUSY_WAIT_S", 0.1)
    monkeypatch.setattr(validation, "run_episodes", lambda *_: [EpisodeResult(RECORD, {})])
    folder = evaluation_dir(tmp_path, "checkpoint_00000002", RECORD.policy, RECORD.settings)
    with claim(folder, "wait"):
        metrics = validate(RunDir(tmp_path))
        assert not (folder / "episodes.jsonl").exists()
    assert metrics["rollout/success_rate"] == 1.0 and VALIDATION_ERROR not in metrics
    assert str(folder) in caplog.text
    validation.store_records(tmp_path, "checkpoint_00000002", [RECORD])
    assert (folder / "episodes.jsonl").is_file()


def test_no_result_remains_if_every_episode_ended_in_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(RECORD, success=False, error="KeyError: 'cube'")
    results = [EpisodeResult(broken, {}), EpisodeResult(replace(broken, seed=400_001), {})]
    monkeypatch.setattr(validation, "run_episodes", lambda *_: results)
    metrics = validate(RunDir(tmp_path / "broken"))
    assert set(metrics) == {VALIDATION_ERROR} and "KeyError: 'cube'" in metrics[VALIDATION_ERROR]
    results[1] = EpisodeResult(RECORD, {})
    metrics = validate(RunDir(tmp_path / "one"))
    assert metrics["rollout/success_rate"] == 0.5 and VALIDATION_ERROR not in metrics


def test_a_run_whose_every_validation_failed_is_an_error(tmp_path: Path) -> None:
    run_dir, validated = RunDir(tmp_path), load_config(["train.rollout_val_freq_epochs=1"])
    for step in (1, 2):
        run_dir.checkpoint(step).mkdir()
        run_dir.write_validation(step, {"action_error": 0.1, VALIDATION_ERROR: "no such camera"})
    with pytest.raises(UserError, match=r"(?s)2 validations .*no such camera"):
        validation.check_any_succeeded(run_dir, validated)
    validation.check_any_succeeded(run_dir, load_config())  # it was to have no rollouts
    run_dir.write_validation(2, {"rollout/success_rate": 0.0})
    validation.check_any_succeeded(run_dir, validated)


def test_a_run_without_any_validation_is_an_error(tmp_path: Path) -> None:
    validated = load_config(["train.rollout_validate_on_checkpoint=true"])
    with pytest.raises(UserError, match="no success rate"):
        validation.check_any_succeeded(RunDir(tmp_path), validated)
