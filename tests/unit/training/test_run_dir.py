"""The folder of a run: stop requests, workers, and files of earlier versions."""

import dataclasses
import json
import pickle
from pathlib import Path

import pytest

from imf_ray.data.source_files import fingerprint
from imf_ray.errors import UserError
from imf_ray.files import append_line
from imf_ray.schema import DataConfig
from imf_ray.storage import local_dir
from imf_ray.training.run_dir import (
    DATA_MANIFEST_FILE,
    METRICS_FILE,
    VALIDATIONS_FILE,
    DataManifest,
    RunDir,
    WorkerRecord,
)


def test_nobody_waits_for_a_checkpoint_of_lost_workers(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    record = WorkerRecord(0, 1, "host", [], "log", "")
    run_dir.write_worker_record(record)
    assert run_dir.safe_to_kill(max_steps=10)  # no request: the caller does not wait
    run_dir.request_stop()
    assert not run_dir.safe_to_kill(max_steps=10)
    run_dir.mark_workers_lost()
    assert run_dir.safe_to_kill(max_steps=10)
    assert [worker["pid"] for worker in run_dir.read_workers()] == [1]  # their logs can be found


def test_a_trained_run_only_waits_for_validations(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.write_worker_record(WorkerRecord(0, 1, "host", [], "log", ""))
    run_dir.request_stop()
    run_dir.checkpoint(10).mkdir()
    assert not run_dir.safe_to_kill(max_steps=10)
    (run_dir.checkpoint(10) / "manifest.json").touch()
    assert run_dir.safe_to_kill(max_steps=10)
    run_dir.clear_stop()
    assert not run_dir.stop_requested()


def test_a_pickled_run_dir_is_the_local_copy_of_the_machine_that_loads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = RunDir(local_dir("memory://runs") / "mine")
    assert str(run_dir) == "memory://runs/mine" and run_dir.is_remote
    content = pickle.dumps(run_dir)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    loaded = pickle.loads(content)
    assert loaded.path.is_relative_to(tmp_path) and str(loaded) == str(run_dir)


def test_new_metrics_are_read_from_an_offset(tmp_path: Path) -> None:
    run_dir, path = RunDir(tmp_path), tmp_path / METRICS_FILE
    assert run_dir.read_new_metrics(0) == ([], 0)
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    lines, offset = run_dir.read_new_metrics(0)
    assert [line["step"] for line in lines] == [1, 2]
    assert run_dir.read_new_metrics(offset) == ([], offset)
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    lines, _ = run_dir.read_new_metrics(offset)
    assert lines == [{"step": 3}]


def test_metrics_of_earlier_versions_have_the_new_names(tmp_path: Path) -> None:
    append_line(tmp_path / METRICS_FILE, '{"step": 1, "data_wait": 0.5, "grad_clipped": 0.1}')
    append_line(tmp_path / VALIDATIONS_FILE, '{"step": 1, "rollout/reward_sum": 2.0}')
    (line,) = RunDir(tmp_path).read_metrics()
    assert line == {"step": 1, "data_wait_frac": 0.5, "grad_clip_frac": 0.1}
    (validation,) = RunDir(tmp_path).read_validations()
    assert validation == {"validated_step": 1, "rollout/return_mean": 2.0}


def test_the_data_manifest_of_an_earlier_version(tmp_path: Path) -> None:
    episode = tmp_path / "episode_0.hdf5"
    row = {"path": str(episode), "length": 5, "format": "imf_ray", "stamp": "7", "digest": "abc"}
    content = {"episodes": [["a", 5, "abc"]], "virtual_shards": 8, "held_out_files": [row]}
    (tmp_path / DATA_MANIFEST_FILE).write_text(json.dumps(content))
    run_dir = RunDir(tmp_path)
    manifest = run_dir.read_data_manifest()
    assert manifest is not None and manifest.episodes == [["a", 5, "abc"]]
    assert manifest.val_episodes[0].fingerprint == "7"
    assert manifest.val_episodes[0].content_hash == "abc"
    episode.touch()
    fingerprinted = dataclasses.replace(manifest.val_episodes[0], fingerprint=fingerprint(episode))
    run_dir.write_data_manifest(dataclasses.replace(manifest, val_episodes=[fingerprinted]))
    assert run_dir.find_val_episodes(DataConfig(str(tmp_path))) == [fingerprinted]
    episode.unlink()
    with pytest.raises(UserError, match=r"episode_0.hdf5.*data\.dataset_dir"):
        run_dir.find_val_episodes(DataConfig(str(tmp_path)))
    run_dir.write_data_manifest(manifest)
    assert run_dir.read_data_manifest() == DataManifest(
        manifest.episodes, manifest.virtual_shards, manifest.val_episodes
    )


DAMAGED_LINES = [
    '{"step": 3, "time": 3.0, "loss',
    '{"step": 3, "time": 3.0}{"step": 4, "time": 4.0}',
    "\0" * 512,
    "[3]",
    '{"time": 3.0}',
    '{"step": 3, "loss": "low"}',
    '{"step": 3, "loss": null}',
]


@pytest.mark.parametrize("damaged", DAMAGED_LINES)
def test_damaged_lines_of_logs_are_skipped(tmp_path: Path, damaged: str) -> None:
    run_dir = RunDir(tmp_path)
    for name in (METRICS_FILE, VALIDATIONS_FILE):
        (tmp_path / name).write_text(f'{{"step": 1}}\n{damaged}\n{{"step": 2}}\n')
    assert [line["step"] for line in run_dir.read_metrics()] == [1, 2]
    assert [line["step"] for line in run_dir.read_new_metrics(0)[0]] == [1, 2]
    assert [row["validated_step"] for row in run_dir.read_validations()] == [1, 2]
    append_line(tmp_path / METRICS_FILE, '{"step": 3}')  # the run can resume
    assert [line["step"] for line in run_dir.read_metrics()] == [1, 2, 3]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"episodes": []}', '{"episodes": 3}'])
def test_a_damaged_data_manifest_is_one_error(tmp_path: Path, content: str) -> None:
    (tmp_path / DATA_MANIFEST_FILE).write_text(content)
    with pytest.raises(UserError, match=r"data\.json is damaged .* delete it"):
        RunDir(tmp_path).read_data_manifest()


def test_a_damaged_worker_record_is_skipped(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    for rank in range(2):
        run_dir.write_worker_record(WorkerRecord(rank, rank, "host", [], "log", ""))
    (tmp_path / "workers" / "rank_0.json").write_text('{"rank": 0')
    assert [worker["rank"] for worker in run_dir.read_workers()] == [1]


def test_checkpoint_metrics_of_an_earlier_version(tmp_path: Path) -> None:
    checkpoint = RunDir(tmp_path).checkpoint(1)
    checkpoint.mkdir()
    manifest = {"metrics": {"step": 1, "data_wait": 0.5}, "files": {}}  # had no digest
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    (checkpoint / "validation.json").write_text('{"rollout/success_low": 0.25}')
    saved = RunDir(tmp_path).best_checkpoint()
    assert saved.metrics == {"step": 1, "data_wait_frac": 0.5, "rollout/success_ci_low": 0.25}
    assert saved.validation_succeeded


@pytest.mark.parametrize("content", ["", "{", "7", "\0\0"])
def test_a_damaged_validation_is_repeated_and_its_checkpoint_stays(
    tmp_path: Path, content: str
) -> None:
    checkpoint = RunDir(tmp_path).checkpoint(1)
    checkpoint.mkdir()
    (checkpoint / "manifest.json").write_text('{"metrics": {"step": 1}, "files": {}}')
    (checkpoint / "validation.json").write_text(content)
    saved = RunDir(tmp_path).newest_checkpoint()
    assert saved is not None and saved.has_validation and not saved.validation_succeeded
    assert "validation.json is damaged" in saved.metrics["validation_error"]
