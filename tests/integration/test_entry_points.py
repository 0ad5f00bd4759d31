"""The commands as a user types them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from imf_ray.cli import run
from imf_ray.data.episodes import episode_path
from imf_ray.training.tracking import read_metrics
from tests.helpers.commands import run_command
from tests.helpers.configs import TINY_AGENT, TINY_TRAINING


def test_train_then_evaluate_with_relative_paths(demonstrations: Path, tmp_path: Path) -> None:
    """RoboIMI's smoke line, made small; relative paths are the caller's; a bad file is counted."""
    (tmp_path / "demos").mkdir()
    for path in demonstrations.glob("*.hdf5"):
        (tmp_path / "demos" / path.name).symlink_to(path)
    (tmp_path / "demos/episode_99.hdf5").write_text("no episode")
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
    assert "step 2/2" in done.stdout and str(checkpoint) in done.stdout
    assert "1 bad ones skipped" in done.stdout and "episode_99.hdf5" in done.stderr
    assert read_metrics(tmp_path / "runs/smoke/metrics.jsonl")[0]["skipped_episodes"] == 1

    judged = run_command(
        "evaluate",
        "checkpoint=runs/smoke/checkpoint_00000002",
        "evaluate.num_episodes=2",
        "evaluate.output_dir=judged",
        "evaluate.video=failures",
        "evaluate.max_video_episodes=1",
        "evaluate.save_trajectories=true",
        "cluster.include_dashboard=false",
        cwd=tmp_path,
    )
    assert judged.returncode == 0, judged.stderr
    assert "95 % Wilson" in judged.stdout
    assert "held-out episodes" in judged.stdout
    assert (tmp_path / "judged/episodes.jsonl").read_text().count("\n") == 2
    summary = json.loads((tmp_path / "judged/summary.json").read_text())
    assert summary["action_error"] > 0.0 and len(summary["seeds"]) == 2
    assert summary["rollout/failed"] == 0.0 and summary["latency"]["inference_ms_p95"] > 0.0
    for name in ("trajectory.npz", "trajectory.png"):
        assert (tmp_path / "judged/trajectories/seed_500001" / name).stat().st_size > 1000
    refused = run_command("evaluate", "checkpoint=runs", "agent.head.n_emb=4", cwd=tmp_path)
    assert refused.returncode == 2 and "part of the checkpoint" in refused.stderr
    assert (tmp_path / "judged/grid.mp4").stat().st_size > 1000


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


def in_this_process(
    module: str, arguments: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, output and errors of an entry point that ends before it needs a cluster."""
    entry = importlib.import_module(f"imf_ray.{module}")
    keywords = {"resolve": entry.resolve} if hasattr(entry, "resolve") else {}
    try:
        code = run(f"imf_ray.{module}", entry.main, arguments, **keywords)
    except SystemExit as end:  # of --help
        code = end.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (_no_data, ["nowhere does not exist", "imf_ray.collect"]),
        (_empty_data, ["empty holds no episode", "imf_ray.collect"]),
        (_nan, ["episode_1.hdf5", "NaN", "data.on_bad_episode=skip"]),
        (_truncated, ["episode_1.hdf5", "cannot be read"]),
        (_wrong_shape, ["episode_1.hdf5", "qpos", "not float (400, D)"]),
        (_unknown_key, ["train.bach_size", "did you mean train.batch_size"]),
        (_missing_camera, ["no camera wrist", "r_vis"]),
        (_unknown_url, ["nowhere://bucket/runs", "cannot be opened"]),
        (_odd_heads, ["n_emb=30 is not divisible", "n_head=4"]),
    ],
)
def test_bad_input_ends_in_one_message_before_ray_starts(
    own_demonstrations: Path,
    tmp_path: Path,
    prepare: Callable[[Path], list[str]],
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("imf_ray.train.init_ray", lambda config: pytest.fail("Ray was needed"))
    (tmp_path / "demos").symlink_to(own_demonstrations)
    options = [*TINY_AGENT, *TINY_TRAINING, "agent=resnet_imf_attnres", *prepare(tmp_path)]
    code, _, errors = in_this_process("train", options, capsys)
    assert code == 2
    (message,) = [line for line in errors.splitlines() if line.startswith("Error: ")]
    assert all(word in message for word in words), message
    assert not (tmp_path / "runs").exists()


def test_what_the_cluster_lacks_ends_in_one_message(demonstrations: Path, tmp_path: Path) -> None:
    gpus = ["train.device=cuda", "cluster.num_workers=64", "train.batch_size=64"]
    options = [*TINY_AGENT, *TINY_TRAINING, "agent=resnet_imf_attnres", *gpus]
    done = run_command("train", *options, f"data.dataset_dir={demonstrations}", cwd=tmp_path)
    assert done.returncode == 2
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "Traceback" not in done.stderr + done.stdout
    assert "64 GPUs" in message and "the cluster has" in message
    assert not (tmp_path / "runs").exists()


MODULES = ["collect", "train", "tune", "status", "evaluate", "compare", "report", "export"]


@pytest.mark.parametrize("module", MODULES)
def test_help_lists_every_option(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = in_this_process(module, ["--help"], capsys)
    assert code == 0
    for word in ("train.batch_size=80", "agent=NAME", "resnet_imf_attnres_multitoken"):
        assert word in output
