"""Runs whose storage is a URL. A local S3 server represents all remote file systems."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from s3fs import S3FileSystem
from safetensors.torch import load_file
from upath import UPath

from imf_ray import claim_owner, claims
from imf_ray.agents.pretrained import EMA_WEIGHTS_FILE, WEIGHTS_FILE
from imf_ray.checkpoint_dir import CHECKPOINT_GLOB, checkpoint_step
from imf_ray.claims import ClaimedError
from imf_ray.errors import StorageError, UserError
from imf_ray.files import JsonlWriter, write_atomically
from imf_ray.storage import delete, display_path, download, local_dir, remote_path, to_local, upload
from imf_ray.sweep.trial_record import TrialDir
from imf_ray.training.run_dir import RunDir
from tests.helpers import REPO_ROOT
from tests.helpers.buckets import open_bucket, s3_server
from tests.helpers.commands import COMMAND_TIMEOUT_S, command_environment, run_command
from tests.helpers.configs import TINY_AGENT, TINY_TRAINING

AGENT = "resnet_imf_attnres_multitoken"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a local S3 server."""
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URL of a new folder that this process and its children can access."""
    return open_bucket(server, monkeypatch, tmp_path)


def use_another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use the cache of another machine, which has no local copies yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))


def test_a_run_in_a_bucket_has_one_writer(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    times = {"HEARTBEAT_S": 0.5, "DEAD_AFTER_S": 10.0, "READ_BACK_S": 0.5, "BUSY_WAIT_S": 0.1}
    for name, seconds in times.items():
        monkeypatch.setattr(claims, name, seconds)
    with RunDir(local_dir(bucket) / "run").claimed():
        use_another_machine(monkeypatch, tmp_path)
        elsewhere = RunDir(local_dir(bucket) / "run")
        with pytest.raises(ClaimedError, match=str(os.getpid())), elsewhere.claimed():
            pass
        machine = claim_owner._machine()
        monkeypatch.setattr(claim_owner, "_machine", lambda: "another boot id")
        with pytest.raises(ClaimedError, match=str(os.getpid())), elsewhere.claimed():
            pass  # its heartbeat shows that the first one is alive
        monkeypatch.setattr(claim_owner, "_machine", lambda: machine)
    with elsewhere.claimed():
        download(local_dir(bucket))
        upload(local_dir(bucket))
    assert [path.name for path in UPath(bucket).rglob("*")] == []


class _BackendError(Exception):
    """An exception like botocore's, which do not derive from `OSError`."""


def test_an_outage_is_not_a_missing_file(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec's own `isfile` returns False during an outage."""
    run_dir = local_dir(bucket) / "run"
    checks = (
        lambda folder: RunDir(folder).stop_requested(retry=False),
        lambda folder: TrialDir(folder).read_record(retry=False),
    )
    assert [bool(check(run_dir)) for check in checks] == [False] * 2
    RunDir(run_dir).request_stop()
    assert RunDir(run_dir).stop_requested()

    async def fail(*_: Any, **__: Any) -> None:
        raise _BackendError

    monkeypatch.setattr(S3FileSystem, "get_s3", fail)
    for check in checks:
        with pytest.raises(StorageError, match=f"{bucket}/run.* cannot be read: _BackendError"):
            check(run_dir)
    with pytest.raises(StorageError):
        download(run_dir)


def test_a_local_path_encodes_its_url(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = local_dir(bucket + "/") / "run"
    assert str(remote_path(run_dir)) == display_path(run_dir) == f"{bucket}/run"
    assert local_dir(f"{bucket}/run") == run_dir
    assert remote_path(tmp_path) is None
    assert display_path(tmp_path) == str(tmp_path) and to_local(tmp_path) == tmp_path
    use_another_machine(monkeypatch, tmp_path)
    other = local_dir(bucket) / "run"
    assert other != run_dir and to_local(run_dir) == other == to_local(other)


def test_files_of_one_machine_reach_another(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = local_dir(bucket) / "run"
    log = JsonlWriter(run_dir / "log.jsonl")
    log.append("1")
    write_atomically(run_dir / "small.json", "a")
    RunDir(run_dir).request_stop()
    log.close()
    use_another_machine(monkeypatch, tmp_path)
    copy = to_local(run_dir)
    assert RunDir(copy).stop_requested()
    RunDir(copy).clear_stop()
    assert not RunDir(run_dir).stop_requested()
    download(copy, "*.json")
    assert sorted(p.name for p in copy.iterdir()) == ["small.json"]
    download(copy)
    assert (copy / "log.jsonl").read_text() == "1\n"
    (copy / "log.jsonl").write_text("1\n2\n")  # not uploaded yet
    write_atomically(run_dir / "small.json", "b")
    download(copy)
    assert (copy / "small.json").read_text() == "b"
    assert (copy / "log.jsonl").read_text() == "1\n2\n"
    upload(copy)
    delete(run_dir)
    assert not run_dir.exists() and not (UPath(bucket) / "run").exists()
    download(copy / "nothing")  # a missing folder is not an error
    delete(copy / "nothing")


def test_a_missing_bucket_is_an_error(bucket: str) -> None:
    with pytest.raises(UserError, match=r"s3://no-such/run/a cannot be written"):
        write_atomically(local_dir("s3://no-such") / "run" / "a", "a")


@pytest.mark.slow
def test_nodes_train_without_a_shared_folder(
    bucket: str, demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = tmp_path / "caches"
    command = ["-m", "tests.helpers.no_shared_folder", bucket, str(demonstrations), str(caches)]
    subprocess.run(
        [sys.executable, *command],
        cwd=REPO_ROOT,
        env=command_environment(),
        check=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    steps = {}
    for machine in ("head", "node", "driver"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(caches / machine))
        run_dir = local_dir(bucket) / "run"
        steps[machine] = [checkpoint.step for checkpoint in RunDir(run_dir).list_checkpoints()]
    remote_steps = sorted(
        checkpoint_step(Path(path.name)) for path in (UPath(bucket) / "run").glob(CHECKPOINT_GLOB)
    )
    assert steps["driver"] == remote_steps and 8 in remote_steps
    assert len(remote_steps) <= 3  # the newest two and the best
    assert 8 in steps["head"] or 8 in steps["node"]
    lines = RunDir(run_dir).read_metrics()
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    num_episodes = [line["rollout/episodes"] for line in lines if "validated" in line]
    assert num_episodes == [2, 2, 2, 2]
    assert all("action_error" in line for line in lines if "validated" in line)


@pytest.mark.slow
def test_a_sweep_resumes_on_another_machine(
    bucket: str, demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {"fixed": {"agent": AGENT}, "grid": {"train.lr": [1e-3, 1e-4]}}
    (tmp_path / "tiny.yaml").write_text(json.dumps(space))
    options = [*TINY_AGENT, *TINY_TRAINING, f"data.dataset_dir={demonstrations}"]
    options += ["search_space=tiny.yaml", f"storage_path={bucket}", "run_name=sweep"]
    options += ["task.max_episode_steps=60"]
    done = run_command("tune", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    remote = UPath(bucket) / "sweep"
    for name in ("sweep.json", "sweep.csv", "best.mp4"):
        assert (remote / name).exists() and f"{bucket}/sweep/{name}" in done.stdout
    first = json.loads((remote / "sweep.json").read_text())

    (remote / "sweep.json").unlink()
    trial = remote / "trials" / Path(first["trials"][0]["run_dir"]).name
    (trial / "trial.json").unlink()
    remote.fs.rm((trial / "checkpoint_00000004").path, recursive=True)
    use_another_machine(monkeypatch, tmp_path)
    again = run_command("tune", "resume=auto", f"storage_path={bucket}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"Resuming {bucket}/sweep" in again.stdout
    second = json.loads((remote / "sweep.json").read_text())
    success = "rollout/success_rate"
    for trial_before, trial_after in zip(first["trials"], second["trials"], strict=True):
        assert trial_before["params"] == trial_after["params"]
        assert trial_before["metrics"][success] == trial_after["metrics"][success]
    table = run_command("report", f"storage_path={bucket}", "run_name=sweep", cwd=tmp_path)
    assert table.returncode == 0 and "untrained" in table.stdout
    assert f"Report: {bucket}/sweep/report.html" in table.stdout
    assert f"checkpoint={bucket}/sweep/trials/" in (remote / "report.html").read_text()
    best = f"{bucket}/sweep/trials/{trial.name}/checkpoint_00000004"
    evaluated = run_command(
        "evaluate",
        f"checkpoint={best}",
        "evaluate.num_episodes=1",
        "cluster.include_dashboard=false",
        cwd=tmp_path,
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert f"Records: {bucket}/sweep/trials/{trial.name}/evaluations" in evaluated.stdout


@pytest.mark.slow
def test_a_run_resumes_on_another_machine(
    bucket: str, demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run the commands of a user. The machine is lost between them."""
    options = [
        f"agent={AGENT}",
        *TINY_AGENT,
        *TINY_TRAINING,
        f"data.dataset_dir={demonstrations}",
        "train.save_freq=2",
        "train.rollout_val_freq_epochs=0",
        f"storage_path={bucket}",
        "run_name=run",
    ]
    done = run_command("train", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"Best checkpoint: {bucket}/run/checkpoint_00000004" in done.stdout
    first = local_dir(bucket) / "run" / "checkpoint_00000004"
    remote = UPath(bucket) / "run"
    assert (remote / first.name / "manifest.json").exists() and (remote / "metrics.jsonl").exists()

    remote.fs.rm((remote / first.name).path, recursive=True)
    use_another_machine(monkeypatch, tmp_path)
    again = run_command("train", *options, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    second = local_dir(bucket) / "run" / first.name
    assert first != second
    for name in (WEIGHTS_FILE, EMA_WEIGHTS_FILE):
        expected, resumed = load_file(first / name), load_file(second / name)
        assert all(torch.equal(expected[key], resumed[key]) for key in expected)
    steps = [line["step"] for line in RunDir(second.parent).read_metrics() if "loss" in line]
    assert steps == [1, 2, 3, 4, 3, 4]

    status = run_command("status", f"{bucket}/run", cwd=tmp_path)
    assert status.returncode == 0 and "4/4" in status.stdout
