"""The command `tune`: a terminal that closes, a resume, a failed trial, the table.

tests/slow/test_sweep.py tests longer sweeps.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from imf_ray import cli, report, status, tune
from imf_ray.pages.model import State
from imf_ray.pages.snapshot import SnapshotReader
from imf_ray.sweep.sweep_dir import SweepDir
from imf_ray.sweep.trial_record import TrialDir
from tests.helpers.commands import COMMAND_TIMEOUT_S, begin_command, run_command
from tests.helpers.configs import TINY_AGENT, TINY_TRAINING
from tests.helpers.reports import read_report

SPACE = """
fixed:
  agent: resnet_imf_attnres_multitoken
  train.max_steps: 40
grid:
  train.lr: [1.0e-3, 1.0e+30]
  agent.head.n_layer: [1]
"""


def test_a_sweep_is_interrupted_resumed_and_reports_a_failed_trial(
    demonstrations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(SPACE)
    varied = ("agent.head.n_layer", "train.max_steps")
    options = [o for o in (*TINY_AGENT, *TINY_TRAINING) if not o.startswith(varied)]
    options += [
        *("search_space=tiny.yaml", f"data.dataset_dir={demonstrations}", "run_name=sweep"),
        *("cluster.num_cpus=4", "task.max_episode_steps=60"),
        *("train.use_swanlab=true", "train.swanlab_mode=offline", "train.tensorboard=true"),
    ]
    folder = tmp_path / "runs/sweep"
    interrupted = begin_command("tune", *options, cwd=tmp_path)
    while max((line["step"] for line in _metrics(folder, 0)), default=0) < 5:
        assert interrupted.poll() is None
        time.sleep(0.1)
    os.killpg(interrupted.pid, signal.SIGHUP)  # the terminal closes, for Ray's processes as well
    _, errors = interrupted.communicate(timeout=COMMAND_TIMEOUT_S)
    assert interrupted.returncode == 130, errors
    resume = errors.splitlines()[-1].strip()
    assert resume.startswith("python -m imf_ray.tune resume=auto run_name=sweep")
    checkpoint = SweepDir(folder).trials()[0].newest_checkpoint()
    assert checkpoint is not None and checkpoint.step == _updates(folder, 0)[-1]
    assert "interrupted" in read_report(folder)[0]
    assert SnapshotReader(folder).read().state == State.STOPPED

    done = run_command("tune", *shlex.split(resume)[3:], cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "1 of 2 trials failed" in done.stderr and "resume=auto" in done.stderr
    assert f"Resuming {folder}" in done.stdout and "SwanLab: offline" in done.stdout
    assert _updates(folder, 0) == list(range(1, 41))  # no update is lost or repeated
    good, bad = json.loads((folder / "sweep.json").read_text())["trials"]
    assert good["status"] == "finished" and Path(good["best_checkpoint"]).is_dir()
    assert good["metrics"]["rollout/episodes"] == 2 and good["metrics"]["action_error"] > 0
    assert good["workers"][0]["pid"] > 0 and Path(good["workers"][0]["log_path"]).exists()
    check_charts(SweepDir(folder).trial(good["name"]), good["swanlab_run"])
    for command in ("swanlab sync --id", f"TensorBoard: tensorboard --logdir {folder}/trials"):
        assert done.stdout.count(command) == 2  # at the start and at the end
    assert bad["status"] == "failed" and "The gradient norm is" in bad["error"]
    assert bad["error"] in done.stdout
    assert len(list(csv.DictReader((folder / "sweep.csv").open()))) == 2
    for name in ("grid.png", "expert.mp4", "best.mp4"):
        assert (folder / name).stat().st_size > 1000 and str(folder / name) in done.stdout

    assert f"Report: {folder}/report.html" in done.stdout
    page, sections = read_report(folder)
    assert {"results", "failures", "commands", "curves", "stages", "videos", "setup"} <= sections
    assert "The gradient norm is" in page and "the right gripper lifts the cube" in page
    assert page.count("imf-ray tune ") == 3 and "data:video/mp4;base64," in page
    first, second = SnapshotReader(folder).read().launches
    assert first.error == "interrupted" and "1 of 2 trials failed" in str(second.error)
    assert all(launch.wall_s and launch.cpu_s for launch in (first, second))
    assert SnapshotReader(folder).read().rows[0].cpu_s

    assert cli.run_command(report.COMMAND, ["run_name=sweep", "report.output=page.html"]) == 0
    assert (tmp_path / "page.html").stat().st_size > 20_000
    table = capsys.readouterr().out
    assert table.index("expert") < table.index("00000 ") < table.index("untrained")
    assert cli.run_command(status.COMMAND, ["runs/sweep"]) == 0
    assert bad["error"] in capsys.readouterr().out
    states = {row.name[:5]: row.state for row in SnapshotReader(folder).read().rows}
    assert states == {"00000": State.FINISHED, "00001": State.FAILED}
    assert cli.run_command(tune.COMMAND, [*options, "train.warmup_steps=2"]) == 2
    assert "started with other settings" in capsys.readouterr().err


def check_charts(trial: TrialDir, swanlab_run: str) -> None:
    """Check the chart logs of a trial of 40 updates that was interrupted once."""
    log = EventAccumulator(str(trial.tensorboard_dir)).Reload()
    for chart in ("3_train/loss", "3_train/lr"):
        assert [event.step for event in log.Scalars(chart)] == list(range(1, 41))
    assert log.Scalars("1_success/rate")[-1].step == 40
    options = log.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"agent.head.n_layer" in options and b"agent.head.n_emb" not in options
    assert [event.value for event in log.Scalars("5_system/restarts")] == [1]
    first, second = sorted(Path(swanlab_run).glob("run-*"))  # one folder for each launch
    run_id = (trial.swanlab_dir / "run_id").read_text()
    assert first.name.endswith(run_id) and second.name.endswith(run_id)


def _metrics(sweep_dir: Path, trial: int) -> list[dict[str, float]]:
    """Read the metrics of a trial, which may not have started yet."""
    trials = sorted(SweepDir(sweep_dir).trials(), key=lambda run: run.name)
    return trials[trial].read_metrics() if len(trials) > trial else []


def _updates(sweep_dir: Path, trial: int) -> list[int]:
    """Return the logged training steps of a trial."""
    return [int(line["step"]) for line in _metrics(sweep_dir, trial) if "loss" in line]
