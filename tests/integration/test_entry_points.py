"""Commands run as a user runs them, and their error messages."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from imf_ray import cli, train
from imf_ray.data.episodes import episode_path
from imf_ray.training.run_dir import RunDir
from tests.helpers.commands import command_environment, run_command
from tests.helpers.configs import TINY_AGENT, TINY_TRAINING
from tests.helpers.reports import read_report


def test_train_and_evaluate_accept_relative_paths(demonstrations: Path, tmp_path: Path) -> None:
    """A small form of RoboIMI's smoke test.

    Relative paths start at the working directory. An invalid file is skipped and counted.
    """
    (tmp_path / "demos").mkdir()
    for path in demonstrations.glob("*.hdf5"):
        (tmp_path / "demos" / path.name).symlink_to(path)
    (tmp_path / "demos/episode_99.hdf5").write_text("not an episode")
    done = run_command(
        "train",
        "agent=resnet_imf_attnres",
        "data.dataset_dir=demos",
        "data.on_bad_episode=skip",
        "data.camera_names=[r_vis,top,front]",
        *TINY_AGENT,
        *TINY_TRAINING,
        "train.device=cpu",
        "train.max_steps=2",
        "train.batch_size=4",
        "train.num_workers=2",
        "train.use_swanlab=false",
        "train.rollout_val_freq_epochs=0",
        "run_name=smoke",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    checkpoint = tmp_path / "runs/smoke/checkpoint_00000002"
    assert (checkpoint / "model.safetensors").is_file()
    assert (checkpoint / "model_ema.safetensors").is_file()
    assert (checkpoint / "config.yaml").is_file()
    assert "smoke: 2/2" in done.stdout and str(checkpoint) in done.stdout
    assert "1 invalid ones skipped" in done.stdout and "episode_99.hdf5" in done.stderr
    assert RunDir(tmp_path / "runs/smoke").read_metrics()[0]["skipped_episodes"] == 1
    page, sections = read_report(tmp_path / "runs/smoke")
    assert {"results", "commands", "curves", "setup"} <= sections and "imf-ray train " in page

    evaluated = run_command(
        "evaluate",
        "checkpoint=runs/smoke/checkpoint_00000002",
        "evaluate.num_episodes=2",
        "evaluate.output_dir=evaluated",
        "evaluate.video=failures",
        "evaluate.max_video_episodes=1",
        "evaluate.save_trajectories=true",
        "cluster.include_dashboard=false",
        cwd=tmp_path,
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert "95 % Wilson" in evaluated.stdout
    assert "held-out episodes" in evaluated.stdout
    assert (tmp_path / "evaluated/episodes.jsonl").read_text().count("\n") == 2
    summary = json.loads((tmp_path / "evaluated/summary.json").read_text())
    assert summary["action_error"] > 0.0 and len(summary["seeds"]) == 2
    assert summary["rollout/failed"] == 0.0 and summary["latency"]["inference_ms_p95"] > 0.0
    for name in ("trajectory.npz", "trajectory.png"):
        assert (tmp_path / "evaluated/trajectories/seed_500001" / name).stat().st_size > 1000
    refused = run_command(
        "evaluate", "checkpoint=runs/smoke/checkpoint_00000002", "agent.head.n_emb=4", cwd=tmp_path
    )
    assert refused.returncode == 2 and "part of the checkpoint" in refused.stderr
    assert (tmp_path / "evaluated/grid.mp4").stat().st_size > 1000
    page, sections = read_report(tmp_path / "evaluated")
    assert {"results", "videos", "setup"} <= sections and "imf-ray evaluate " in page


def _no_data(folder: Path) -> list[str]:
    return ["data.dataset_dir=nowhere"]


def _empty_data(folder: Path) -> list[str]:
    (folder / "empty").mkdir()
    return ["data.dataset_dir=empty"]


def _nan(folder: Path) -> list[str]:
    with h5py.File(episode_path(folder / "demos", 1), "r+") as file:
        file["action"][5, 5] = np.nan
    return ["data.dataset_dir=demos"]


def _truncated(folder: Path) -> list[str]:
    path = episode_path(folder / "demos", 1)
    path.write_bytes(path.read_bytes()[:5000])
    return ["data.dataset_dir=demos"]


def _missing_camera(folder: Path) -> list[str]:
    return ["data.dataset_dir=demos", "data.camera_names=[top,wrist]"]


def _wrong_shape(folder: Path) -> list[str]:
    with h5py.File(episode_path(folder / "demos", 1), "r+") as file:
        values = file["observations/qpos"][:-3]
        del file["observations/qpos"]
        file["observations/qpos"] = values
    return ["data.dataset_dir=demos"]


def _unknown_key(folder: Path) -> list[str]:
    return ["data.dataset_dir=demos", "train.bach_size=4"]


def _unknown_url(folder: Path) -> list[str]:
    return ["data.dataset_dir=demos", "storage_path=nowhere://bucket/runs", "run_name=a"]


def _odd_heads(folder: Path) -> list[str]:
    return ["data.dataset_dir=demos", "agent.head.n_emb=30", "agent.head.n_head=4"]


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (_no_data, ["nowhere does not exist", "imf_ray.collect"]),
        (_empty_data, ["empty has no episode", "imf_ray.collect"]),
        (_nan, ["episode_1.hdf5", "NaN", "data.on_bad_episode=skip"]),
        (_truncated, ["episode_1.hdf5", "cannot be read"]),
        (_wrong_shape, ["episode_1.hdf5", "/observations/qpos has 397"]),
        (_unknown_key, ["train.bach_size", "did you mean train.batch_size"]),
        (_missing_camera, ["data.camera_names=[top]", "r_vis"]),
        (_unknown_url, ["nowhere://bucket/runs", "cannot be opened"]),
        (_odd_heads, ["n_emb=30 is not divisible", "n_head=4"]),
    ],
)
def test_bad_input_ends_in_one_message_before_training_starts(
    own_demonstrations: Path,
    tmp_path: Path,
    prepare: Callable[[Path], list[str]],
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is checked while Ray starts, so Ray does not start here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("imf_ray.cluster._connect_or_start", lambda *_: None)
    monkeypatch.setattr("imf_ray.train.allocate_run", lambda *_: pytest.fail("Training starts"))
    (tmp_path / "demos").symlink_to(own_demonstrations)
    options = [*TINY_AGENT, *TINY_TRAINING, "agent=resnet_imf_attnres", *prepare(tmp_path)]
    assert cli.run_command(train.COMMAND, options) == 2
    errors = capsys.readouterr().err
    (message,) = [line for line in errors.splitlines() if line.startswith("Error: ")]
    assert all(word in message for word in words), message
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_missing_gpus_end_in_one_message(demonstrations: Path, tmp_path: Path) -> None:
    gpus = ["train.device=cuda", "cluster.num_workers=64", "train.batch_size=64"]
    options = [*TINY_AGENT, *TINY_TRAINING, "agent=resnet_imf_attnres", *gpus]
    done = run_command("train", *options, f"data.dataset_dir={demonstrations}", cwd=tmp_path)
    assert done.returncode == 2
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "Traceback" not in done.stderr + done.stdout
    assert "64 GPUs" in message and "the cluster has" in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("module", ["imf_ray.dataset", "imf_ray.data", "imf_ray"])
def test_the_dataset_command_runs_under_each_name(module: str, tmp_path: Path) -> None:
    arguments = ["dataset"] if module == "imf_ray" else []
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, "check", "nowhere"],
        cwd=tmp_path,
        env=command_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "nowhere does not exist" in done.stderr
