"""A run on two nodes loses one: it goes on with the workers that are left."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from imf_ray.training.checkpoint import list_checkpoints
from imf_ray.training.tracking import METRICS_FILE, RESTARTS, read_metrics
from imf_ray.training.trainer import check_run
from tests.conftest import COMMAND_LIMIT_S, command_environment, tiny_config
from tests.training.two_nodes import STEPS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mode", ["killed", pytest.param("drained", marks=pytest.mark.slow)])
def test_a_run_goes_on_without_the_node_that_it_lost(
    demonstrations: Path, tmp_path: Path, mode: str
) -> None:
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "tests.training.two_nodes", str(run_dir), str(demonstrations)]
    done = subprocess.run(
        [*command, mode],
        cwd=ROOT,
        env=command_environment(),
        capture_output=True,
        text=True,
        timeout=COMMAND_LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    metrics = read_metrics(run_dir / METRICS_FILE)
    first, second = (line["step"] for line in metrics if RESTARTS in line)
    assert first == 0 < second < STEPS[mode]
    if mode == "drained":  # no other checkpoint was due
        assert second in [checkpoint.step for checkpoint in list_checkpoints(run_dir)]
    assert list_checkpoints(run_dir)[-1].step == STEPS[mode]

    plan = check_run(tiny_config(demonstrations, "cluster.num_workers=2..4")).plan
    logs = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(run_dir.glob("samples_rank_*.jsonl"))
    ]
    assert len(logs) == 4
    for step in range(STEPS[mode]):
        lines = [[entry["samples"] for entry in log if entry["step"] == step] for log in logs]
        alone = step >= second
        taken = [found[-1 if alone else 0] for found in (lines[:2] if alone else lines)]
        assert sorted(itertools.chain(*taken)) == sorted(plan.global_batch(step).tolist())
