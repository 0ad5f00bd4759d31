"""The folder of a sweep: what is read from it, also under the names of earlier versions."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from imf_ray.errors import UserError
from imf_ray.sweep.prepare import find_resumable_sweep
from imf_ray.sweep.search_space import SearchSpace
from imf_ray.sweep.sweep_dir import SavedSpace, SweepDir
from imf_ray.sweep.trial_record import FAILED, FINISHED, STOPPED, TrialDir, TrialRecord

SPACE = SearchSpace("two", grid={"train.seed": [1, 2]}, scheduler={"asha": {"grace_period": 2}})
OLD_METRICS = {"step": 4, "rollout/reward_sum": 1.5, "rollout/success_low": 0.1}
NEW_METRICS = {"step": 4, "rollout/return_mean": 1.5, "rollout/success_ci_low": 0.1}


def test_the_newest_incomplete_sweep_is_resumed(tmp_path: Path) -> None:
    assert find_resumable_sweep(tmp_path, None) is None
    assert find_resumable_sweep(tmp_path, "a") is None
    for started_at, name in enumerate("ab", start=1):
        SweepDir(tmp_path / name).write_space(SavedSpace(SPACE, ["train.lr=1"], float(started_at)))
    a, b = SweepDir(tmp_path / "a"), SweepDir(tmp_path / "b")
    assert find_resumable_sweep(tmp_path, None) == b
    for status, failed_validation_steps, newest in (
        (FAILED, [], b),
        (FINISHED, [2], b),
        (FINISHED, [], a),
        (STOPPED, [2], a),
    ):
        record = TrialRecord(
            "00000-lr_1", {"train.lr": 1}, status, failed_validation_steps=failed_validation_steps
        )
        b.write_results("two", [record], {})
        assert find_resumable_sweep(tmp_path, None) == newest
    assert find_resumable_sweep(tmp_path, "b") == b
    assert a.read_space() == SavedSpace(SPACE, ["train.lr=1"], 1.0)


def test_a_sweep_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    sweep_dir = SweepDir(tmp_path)
    old_space = {"space": {"name": "old", "grid": {"train.lr": [1]}}, "overrides": [], "begun": 5.0}
    (tmp_path / "space.json").write_text(json.dumps(old_space))
    assert sweep_dir.read_space() == SavedSpace(
        SearchSpace("old", grid={"train.lr": [1]}), [], started_at=5.0
    )
    trial = {"name": "t", "params": {}, "status": FINISHED, "metrics": OLD_METRICS, "unjudged": [2]}
    results = {"trials": [trial], "oracles": {"expert": OLD_METRICS}}
    (tmp_path / "sweep.json").write_text(json.dumps(results))
    record = TrialRecord("t", {}, FINISHED, NEW_METRICS, failed_validation_steps=[2])
    assert sweep_dir.read_results() == ([record], {"expert": NEW_METRICS})
    assert not record.is_complete

    (tmp_path / "oracles.json").write_text(json.dumps({"expert": OLD_METRICS}))
    assert sweep_dir.read_baselines() == {"expert": NEW_METRICS}
    sweep_dir.write_baselines({**sweep_dir.read_baselines(), "untrained": NEW_METRICS})
    assert sweep_dir.read_baselines() == {"expert": NEW_METRICS, "untrained": NEW_METRICS}


def test_trial_records(tmp_path: Path) -> None:
    trial_dir = TrialDir(tmp_path)
    assert trial_dir.read_record() is None
    record = TrialRecord("t", {"train.lr": 1}, FAILED, error="a disk was full")
    trial_dir.write_record(record)
    assert trial_dir.read_record() == record
    old = {"name": "t", "params": {}, "status": STOPPED, "unjudged": [2], "metrics": OLD_METRICS}
    trial_dir.trial_file.write_text(json.dumps(old))
    assert trial_dir.read_record() == TrialRecord(
        "t", {}, STOPPED, NEW_METRICS, failed_validation_steps=[2]
    )
    for content in ("{", "[]", json.dumps({**old, "failed_validation_steps": []})):
        trial_dir.trial_file.write_text(content)
        with pytest.raises(UserError, match=r"trial\.json is damaged .* Delete it"):
            trial_dir.read_record()
    trial_dir.delete_record()
    assert trial_dir.read_record() is None


@pytest.mark.parametrize("content", ["", '{"trials": [', "[]", "{}", "null", "\0\0\0"])
def test_damaged_files_are_one_error_each(tmp_path: Path, content: str) -> None:
    sweep_dir = SweepDir(tmp_path)
    readers = {
        "space.json": sweep_dir.read_space,
        "sweep.json": sweep_dir.read_results,
        "baselines.json": sweep_dir.read_baselines,
    }
    for name, read in readers.items():
        (tmp_path / name).write_text(content)
        if (name, content) != ("baselines.json", "{}"):
            with pytest.raises(UserError, match=f"{name} is damaged"):
                read()


def test_a_sweep_s_folder_is_found_by_the_machine_that_unpickles_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    here = SweepDir(tmp_path / "one/imf_ray/runs/memory%3A%2F%2Fbucket/sweep")
    assert str(here) == "memory://bucket/sweep"
    pickled = pickle.dumps(here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    there = pickle.loads(pickled)
    assert there.path == tmp_path / "other/imf_ray/runs/memory%3A%2F%2Fbucket/sweep"


def test_the_record_of_a_failed_trial_has_no_secret(tmp_path: Path) -> None:
    trial = TrialDir(tmp_path / "trial")
    error = "s3://key:s3cr3t@bucket/demos cannot be read: 403"
    trial.write_record(TrialRecord("trial", {}, FAILED, error=error))
    record = trial.read_record()
    assert record is not None and record.error == "s3://***@bucket/demos cannot be read: 403"
