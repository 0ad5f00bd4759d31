"""Runs whose nodes are lost, drained or added, and runs with node pools."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from imf_ray.training.run_dir import RunDir
from imf_ray.training.run_records import RESTARTS
from imf_ray.training.trainer import prepare_run
from tests.helpers import REPO_ROOT
from tests.helpers.commands import COMMAND_TIMEOUT_S, command_environment
from tests.helpers.configs import tiny_config
from tests.helpers.two_nodes import STEPS


def run_script(name: str, *arguments: str) -> str:
    """Run a script of `tests/helpers` and return its output."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.helpers.{name}", *arguments],
        cwd=REPO_ROOT,
        env=command_environment(),
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("mode", ["killed", "drained", "added"])
def test_a_run_continues_when_its_nodes_change(
    demonstrations: Path, tmp_path: Path, mode: str
) -> None:
    run_dir = tmp_path / "run"
    run_script("two_nodes", str(run_dir), str(demonstrations), mode)
    metrics = RunDir(run_dir).read_metrics()
    launched_at, restarted_at = (line["step"] for line in metrics if RESTARTS in line)
    end = max(line["step"] for line in metrics)
    assert launched_at == 0 < restarted_at < end
    if mode == "drained":  # only the notice of the drain leads to a checkpoint
        assert restarted_at in [
            checkpoint.step for checkpoint in RunDir(run_dir).list_checkpoints()
        ]
    if mode != "added":
        assert end == STEPS[mode]
    assert RunDir(run_dir).list_checkpoints()[-1].step == end

    plan = prepare_run(tiny_config(demonstrations, "cluster.num_workers=2..4")).plan
    logs = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(run_dir.glob("samples_rank_*.jsonl"))
    ]
    assert len(logs) == 4
    before, after = (2, 4) if mode == "added" else (4, 2)
    for step in range(end):
        lines = [[entry["samples"] for entry in log if entry["step"] == step] for log in logs]
        num_ranks, attempt = (before, 0) if step < restarted_at else (after, -1)
        samples = [attempts[attempt] for attempts in lines[:num_ranks]]
        assert sorted(itertools.chain(*samples)) == sorted(plan.global_batch(step).tolist())


def test_each_kind_of_process_stays_in_its_pool(demonstrations: Path, tmp_path: Path) -> None:
    titles_by_pool = json.loads(
        run_script("node_pools", str(tmp_path / "run"), str(demonstrations)).splitlines()[-1]
    )
    for title, expected_pool in (
        ("RayTrainWorker", "train"),
        ("RolloutActor", "sim"),
        ("Read", "data"),
    ):
        pools = [pool for pool, titles in titles_by_pool.items() if any(title in t for t in titles)]
        assert pools == [expected_pool], titles_by_pool
