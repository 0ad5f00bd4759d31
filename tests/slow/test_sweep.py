"""The command `tune`: Ctrl-C, a killed driver, a resume, a failed trial, a growing cluster."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imf_ray.pages.model import State
from imf_ray.pages.snapshot import SnapshotReader
from imf_ray.sweep.sweep_dir import SweepDir
from testing_support.processes import is_alive
from tests.helpers import REPO_ROOT
from tests.helpers.commands import (
    COMMAND_TIMEOUT_S,
    begin_command,
    command_environment,
    run_command,
)
from tests.helpers.configs import TINY_AGENT, TINY_TRAINING

SPACE = """
fixed:
  agent: resnet_imf_attnres_multitoken
  agent.head.n_head: 2
  train.max_steps: 200
grid:
  agent.head.n_emb: [16, 32]
  agent.head.n_layer: [1]
"""
FAILING_SPACE = """
fixed:
  agent: resnet_imf_attnres_multitoken
  agent.head.n_head: 2
grid:
  train.lr: [1.0e-3, 1.0e+30]
"""


def read_logs(sweep_dir: Path) -> list[list[dict[str, Any]]]:
    """Read the metrics of each trial that has logged any."""
    logs = [trial.read_metrics() for trial in SweepDir(sweep_dir).trials()]
    return [log for log in logs if log]


def wait_for_steps(
    min_steps: Sequence[int], sweep_dir: Path, command: subprocess.Popen[str]
) -> None:
    """Wait until each trial has made at least its number of `min_steps` updates."""
    steps: list[int] = []
    while len(steps) < len(min_steps) or any(
        step < minimum for step, minimum in zip(steps, min_steps, strict=True)
    ):
        assert command.poll() is None
        time.sleep(0.1)
        steps = [max((line["step"] for line in log), default=0) for log in read_logs(sweep_dir)]


def newest_steps(sweep_dir: Path) -> list[int]:
    """Return the step of each trial's newest valid checkpoint, or 0 if it has none."""
    checkpoints = [run.newest_checkpoint() for run in SweepDir(sweep_dir).trials()]
    return [0 if checkpoint is None else checkpoint.step for checkpoint in checkpoints]


def test_a_sweep_is_interrupted_killed_resumed_and_reported(
    demonstrations: Path, tmp_path: Path
) -> None:
    """Run the commands as a user does: Ctrl-C, a killed driver, a resume, status and report."""
    (tmp_path / "tiny.yaml").write_text(SPACE)
    varied = ("agent.head.n_emb", "agent.head.n_layer", "agent.head.n_head", "train.max_steps")
    options = [o for o in (*TINY_AGENT, *TINY_TRAINING) if not o.startswith(varied)]
    options += [
        "search_space=tiny.yaml",
        f"data.dataset_dir={demonstrations}",
        "cluster.num_cpus=4",
        "train.use_swanlab=true",
        "train.swanlab_mode=offline",
        "task.max_episode_steps=60",
        "run_name=sweep",
        "train.save_freq=100",  # few checkpoints: validating one takes longer than training it
    ]
    folder = tmp_path / "runs/sweep"
    interrupted = begin_command("tune", *options, cwd=tmp_path)
    wait_for_steps([5, 5], folder, interrupted)
    assert [row.state for row in SnapshotReader(folder).read().rows] == 2 * [State.RUNNING]
    interrupted.send_signal(signal.SIGINT)
    _, errors = interrupted.communicate(timeout=COMMAND_TIMEOUT_S)
    assert interrupted.returncode == 130, errors
    assert "python -m imf_ray.tune resume=auto run_name=sweep" in errors
    saved = newest_steps(folder)
    logged = [{line["step"] for line in log if "loss" in line} for log in read_logs(folder)]
    assert [max(steps, default=0) for steps in logged] == saved  # Ctrl-C loses no update

    killed = begin_command("tune", "resume=auto", cwd=tmp_path)
    wait_for_steps([steps + 1 for steps in saved], folder, killed)
    killed.kill()
    killed.communicate(timeout=COMMAND_TIMEOUT_S)
    workers = [worker["pid"] for run in SweepDir(folder).trials() for worker in run.read_workers()]
    while any(map(is_alive, workers)):
        time.sleep(0.1)
    resumed_at = [saved, newest_steps(folder)]

    done = run_command("tune", "resume=auto", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"Resuming {folder}" in done.stdout
    assert "2 trials, 2 at a time" in done.stdout and "SwanLab: offline" in done.stdout
    for trial, log in enumerate(read_logs(folder)):  # saved updates are not repeated
        assert {line["step"] for line in log if "loss" in line} == set(range(1, 201))
        launch_steps = [line["step"] for line in log if "restarts" in line]
        assert launch_steps == [0, *(steps[trial] for steps in resumed_at)]
    content = json.loads((folder / "sweep.json").read_text())
    for baseline in ("expert", "untrained"):
        assert content["baselines"][baseline]["rollout/episodes"] == 2
    for trial in content["trials"]:
        assert trial["status"] == "finished" and trial["driver_pid"] > 0 and trial["driver_host"]
        assert Path(trial["best_checkpoint"]).is_dir()
        assert trial["metrics"]["rollout/episodes"] == 2 and trial["metrics"]["action_error"] > 0
        (worker,) = trial["workers"]
        assert worker["pid"] > 0 and worker["host"] and worker["gpu_ids"] == []
        assert Path(worker["log_path"]).exists()
        assert Path(trial["swanlab_run"]).is_dir()
    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    assert len(rows) == 2 and json.loads(rows[0]["workers"])[0]["pid"] > 0
    for name in ("grid.png", "expert.mp4", "best.mp4"):
        assert (folder / name).stat().st_size > 1000 and str(folder / name) in done.stdout
    table = done.stdout[done.stdout.index("Ranked by") :]
    assert table.index("expert") < table.index("00000 ")
    assert table.index("00001 ") < table.index("untrained")

    report = run_command("report", "run_name=sweep", cwd=tmp_path)
    assert report.returncode == 0 and "expert" in report.stdout and "00001 " in report.stdout

    status = run_command("status", "runs/sweep", cwd=tmp_path)
    assert status.returncode == 0 and "2 trials: 2 finished" in status.stdout
    trained_run, pending_run = SweepDir(folder).trials()
    trained_run.delete_record()
    metrics_file = trained_run.path / "metrics.jsonl"
    metrics_file.write_text(
        metrics_file.read_text() + '{"step": 1, "lo'
    )  # a line that is still being written
    pending_run.delete_record()
    (pending_run.path / "metrics.jsonl").unlink()
    rows = {row.name: row for row in SnapshotReader(folder).read().rows}
    trained, pending = rows[trained_run.name], rows[pending_run.name]
    assert trained.state == State.FINISHED
    assert trained.saved_step == trained.max_steps
    assert pending.state == State.PENDING and pending.last_entry_age_s is None

    changed = run_command("tune", *options, "train.lr=1e-2", cwd=tmp_path)
    assert changed.returncode == 2 and "started with other settings" in changed.stderr


def test_a_failed_trial_is_reported_and_retried(demonstrations: Path, tmp_path: Path) -> None:
    (tmp_path / "failing.yaml").write_text(FAILING_SPACE)
    options = [o for o in (*TINY_AGENT, *TINY_TRAINING) if not o.startswith("agent.head.n_head")]
    options += ["search_space=failing.yaml", f"data.dataset_dir={demonstrations}"]
    options += ["task.max_episode_steps=60", "run_name=sweep", "cluster.num_cpus=4"]
    folder = tmp_path / "runs/sweep"
    for attempt, arguments in enumerate((options, ["resume=auto"]), start=1):
        done = run_command("tune", *arguments, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        good, bad = json.loads((folder / "sweep.json").read_text())["trials"]
        assert (good["status"], bad["status"]) == ("finished", "failed")
        assert "The gradient norm is" in bad["error"] and bad["error"] in done.stdout
        assert "1 of 2 trials failed" in done.stderr and "resume=auto" in done.stderr
        launches = [sum("restarts" in line for line in log) for log in read_logs(folder)]
        assert launches == [1, attempt]  # only a resume of the sweep retries a diverged run
    assert bad["error"] in run_command("status", str(folder), cwd=tmp_path).stdout


def test_a_sweep_makes_an_autoscaling_cluster_grow(demonstrations: Path, tmp_path: Path) -> None:
    module = "tests.helpers.autoscaling_cluster"
    done = subprocess.run(
        [sys.executable, "-m", module, str(tmp_path), str(demonstrations)],
        cwd=REPO_ROOT,
        env=command_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 trials, 2 at a time" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == [1, 2]
    rows = SnapshotReader(tmp_path / "runs/sweep").read().rows
    assert [row.state for row in rows] == 2 * [State.FINISHED]
