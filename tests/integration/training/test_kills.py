"""Runs with killed workers: samples and weights equal those of an undisturbed run."""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray.train
import torch
from safetensors.torch import load_file

from imf_ray.agents.pretrained import EMA_WEIGHTS_FILE, WEIGHTS_FILE
from imf_ray.allocation import allocate_run
from imf_ray.cluster import ClusterSize
from imf_ray.training.run_dir import WORKERS_DIR, RunDir
from imf_ray.training.run_records import RESTARTS
from imf_ray.training.trainer import fit, prepare_run
from tests.helpers.configs import LOGICAL_CPUS, LOGICAL_GPUS, tiny_config

SIZE = ClusterSize(((float(LOGICAL_CPUS), float(LOGICAL_GPUS)),))
STEPS, RANKS, SAVE_FREQ, KILLED_AT = 30, 2, 3, 20
OPTIONS = (
    f"train.max_steps={STEPS}",
    "train.batch_size=48",
    f"train.save_freq={SAVE_FREQ}",
    "train.keep_last_k=8",
    "train.log_sample_ids=true",
    "agent.vision_backbone.crop_size=40",
)
TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def clean(
    ray_cluster: None, demonstrations: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An undisturbed run of two ranks over more than an epoch."""
    run_dir = tmp_path_factory.mktemp("kills") / "clean"
    config = tiny_config(demonstrations, *OPTIONS, f"cluster.num_workers={RANKS}")
    fit(prepare_run(config), RunDir(run_dir), allocate_run(config, SIZE))
    return run_dir


def samples_of(run_dir: Path, rank: int) -> dict[int, list[int]]:
    """Read the sample ids of each training step. A repeated step must have the same ids."""
    path = run_dir / f"samples_rank_{rank}.jsonl"
    samples: dict[int, list[int]] = {}
    text = path.read_text() if path.exists() else ""
    for line in text[: text.rfind("\n") + 1].splitlines():  # the last line may be incomplete
        entry = json.loads(line)
        assert samples.setdefault(entry["step"], entry["samples"]) == entry["samples"]
    return samples


def kill_at(run_dir: Path, kills: list[tuple[int, int]], killed: list[int]) -> None:
    """For each (step, rank) in turn, kill the worker of the rank once it has started the step.

    The process ids of the killed workers are appended to `killed`.
    """
    for step, rank in kills:
        record = run_dir / WORKERS_DIR / f"rank_{rank}.json"
        until = time.monotonic() + TIMEOUT_S
        while time.monotonic() < until:
            if max(samples_of(run_dir, rank), default=-1) >= step and record.exists():
                pid = json.loads(record.read_text())["pid"]
                if pid not in killed:
                    # The record may belong to a worker that ended with a killed one.
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)
                        break
            time.sleep(0.01)


@pytest.mark.parametrize("count", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_workers_resume_with_the_next_sample(
    clean: Path, demonstrations: Path, tmp_path: Path, count: int
) -> None:
    rng = np.random.default_rng(0)
    steps = sorted(rng.choice(np.arange(1, STEPS - 1), count, replace=False).tolist())
    kills = [(step, index % RANKS) for index, step in enumerate(steps)]
    killed: list[int] = []
    killer = threading.Thread(target=kill_at, args=(tmp_path / "killed", kills, killed))
    failures = f"train.max_failures={count + 1}"
    config = tiny_config(demonstrations, *OPTIONS, f"cluster.num_workers={RANKS}", failures)
    killer.start()
    fit(prepare_run(config), RunDir(tmp_path / "killed"), allocate_run(config, SIZE))
    killer.join()
    assert len(killed) == count
    metrics = RunDir(tmp_path / "killed").read_metrics()
    assert [line[RESTARTS] for line in metrics if RESTARTS in line] == list(range(count + 1))

    for rank in range(RANKS):
        expected = samples_of(clean, rank)
        assert sorted(expected) == list(range(STEPS))
        assert samples_of(tmp_path / "killed", rank) == expected
    last = f"checkpoint_{STEPS:08d}"
    for name in (WEIGHTS_FILE, EMA_WEIGHTS_FILE):
        expected_weights, weights = (
            load_file(folder / last / name) for folder in (clean, tmp_path / "killed")
        )
        assert all(torch.equal(expected_weights[key], weights[key]) for key in weights)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_global_batches_do_not_depend_on_the_number_of_workers(
    ray_cluster: None, demonstrations: Path, tmp_path: Path, workers: int
) -> None:
    """A run of two workers, killed in its second epoch, resumes with one or three workers."""
    run_dir = tmp_path / "run"
    config = tiny_config(
        demonstrations, *OPTIONS, f"cluster.num_workers={RANKS}", "train.max_failures=0"
    )
    plan = prepare_run(config).plan
    assert plan.steps_per_epoch < KILLED_AT - SAVE_FREQ
    killed: list[int] = []
    killer = threading.Thread(target=kill_at, args=(run_dir, [(KILLED_AT, 1)], killed))
    killer.start()
    with pytest.raises(ray.train.TrainingFailedError):
        fit(prepare_run(config), RunDir(run_dir), allocate_run(config, SIZE))
    killer.join()
    assert len(killed) == 1
    before = [samples_of(run_dir, rank) for rank in range(RANKS)]
    for path in run_dir.glob("samples_rank_*"):
        path.unlink()

    config = tiny_config(
        demonstrations, *OPTIONS, f"cluster.num_workers={workers}", "train.num_workers=2"
    )
    fit(prepare_run(config), RunDir(run_dir), allocate_run(config, SIZE))
    after = [samples_of(run_dir, rank) for rank in range(workers)]
    start = min(after[0])
    assert KILLED_AT - SAVE_FREQ <= start <= max(before[0])
    for step in range(STEPS):
        ranks = before if step < start else after
        batch = [sample for samples in ranks for sample in samples[step]]
        assert batch == plan.global_batch(step).tolist()
