"""Runs at SwanLab, online and uploaded later, against a server on this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from imf_ray.schema import Config
from imf_ray.sweep.sweep_dir import SweepDir
from imf_ray.training import swanlab_log
from imf_ray.training.chart_log import charts
from imf_ray.training.run_dir import RunDir
from imf_ray.training.swanlab_log import SwanLabLog
from imf_ray.training.tracking import describe_tracking
from imf_ray.video import convert_to_gif, encode_video
from tests.helpers.fake_swanlab import USER, FakeSwanLab, UploadedRun, fake_swanlab_server
from tests.helpers.trainers import config_of

STEPS = (100, 200, 300)
LOSSES = [(step, step / 1000) for step in STEPS]


@pytest.fixture(scope="module")
def url_and_server() -> Iterator[tuple[str, FakeSwanLab]]:
    """A server for all tests, because SwanLab keeps the first URL of a process."""
    with fake_swanlab_server() as url_and_content:
        yield url_and_content


@pytest.fixture
def server(
    url_and_server: tuple[str, FakeSwanLab], monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeSwanLab]:
    """A SwanLab server without runs, at which this process is logged in."""
    url, content = url_and_server
    content.runs.clear()
    monkeypatch.setenv("SWANLAB_API_HOST", url)
    monkeypatch.setenv("SWANLAB_API_KEY", "key-of-nobody")
    yield content
    content.is_down = False


def launch(run_dir: RunDir, config: Config, start_step: int) -> str:
    """Log a launch that resumes from `start_step`, with a video; return the run's location."""
    log = SwanLabLog(run_dir, config)
    for step in STEPS:
        if step > start_step:
            log.log(step, 0.0, charts({"step": step, "loss": step / 1000, "restarts": 0}))
    video = convert_to_gif(encode_video(np.zeros((25, 32, 48, 3), np.uint8)))
    log.log_video(STEPS[-1], video, "First episode")
    log.close()
    return log.location


def upload(line: str) -> None:
    """Run the command that a line of `describe_tracking` contains, as in an activated venv."""
    command = line.partition(":\n")[2]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(command, shell=True, check=True, timeout=120, env={**os.environ, "PATH": path})


def check_run(run: UploadedRun) -> None:
    """Check that two launches are one run with every step once, in a group, with a flat config."""
    assert run.project == "arms" and run.num_launches == 2 and run.state == "FINISHED"
    assert run.options["name"] == "trial 1" and run.options["cluster"] == "my sweep"
    assert run.scalars == {"3_train/loss": LOSSES}
    assert run.sections["3_train/loss"] == "3_train"
    assert (STEPS[-1], "First episode") in run.videos
    assert run.config["train.lr"]["value"] == 1e-4
    assert not {name for name, option in run.config.items() if isinstance(option["value"], dict)}


def test_launches_of_a_run_continue_it_online(server: FakeSwanLab, tmp_path: Path) -> None:
    config = config_of("train.use_swanlab=true", "train.swanlab_project=arms", "train.lr=1e-4")
    trial = SweepDir(tmp_path / "my sweep").trial("trial 1")
    locations = {launch(trial, config, start_step) for start_step in (0, 200)}
    ((run_id, run),) = server.runs.items()
    check_run(run)
    (location,) = locations
    assert location.endswith(f"/@{USER}/arms/runs/{run_id}")
    assert not server.unknown_requests


def test_launches_of_offline_runs_are_uploaded_to_one_run_each(
    server: FakeSwanLab, tmp_path: Path
) -> None:
    options = ("train.use_swanlab=true", "train.swanlab_mode=offline", "train.lr=1e-4")
    config = config_of(*options, "train.swanlab_project=arms")
    sweep_dir = SweepDir(tmp_path / "my sweep")
    for start_step in (0, 200):
        launch(sweep_dir.trial("trial 1"), config, start_step)
    assert not server.runs
    upload(*describe_tracking(config, sweep_dir, is_sweep=True))
    (run,) = server.runs.values()
    check_run(run)
    assert not server.unknown_requests


def test_a_run_ends_although_its_server_has_gone(
    server: FakeSwanLab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(swanlab_log, "FINISH_TIMEOUT_S", 1.0)
    config, run_dir = config_of("train.use_swanlab=true"), RunDir(tmp_path)
    log = SwanLabLog(run_dir, config)
    assert log.location.startswith("http")
    server.is_down = True
    log.log(1, 0.0, {"3_train/loss": 0.5})
    log.close()
    assert "SwanLab does not answer" in caplog.text
    (line,) = describe_tracking(config, run_dir, swanlab_run=log.location)
    assert line.startswith("SwanLab: offline. Upload it with:")
