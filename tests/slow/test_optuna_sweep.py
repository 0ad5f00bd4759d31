"""A searched sweep whose driver is killed samples the same trials as one that was not."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from imf_ray.rollout.records import SUCCESS_RATE
from imf_ray.sweep.sweep_dir import SweepDir
from tests.helpers.commands import COMMAND_TIMEOUT_S, begin_command, run_command

NUM_TRIALS, KILLED_AFTER = 12, 6
SPACE = f"""
fixed:
  agent: state_imf_attnres
  agent.head.n_emb: 32
  agent.head.n_head: 2
  agent.head.n_kv_head: 2
  train.max_steps: 30
  train.batch_size: 8
  train.num_workers: 1
  train.val_split: 0.34
  train.rollout_num_episodes: 2
  train.rollout_val_freq_epochs: 1000
sample:
  train.lr: {{loguniform: [1.0e-5, 1.0e-1]}}
  agent.head.n_layer: {{choice: [1, 2]}}
num_samples: {NUM_TRIALS}
search:
  optuna: {{n_startup_trials: 3}}
"""


def choices(sweep: SweepDir) -> dict[str, dict[str, Any]]:
    """Return the sampled options of each trial."""
    saved = sweep.read_space()
    assert saved is not None
    return saved.trials


def num_ended(sweep: SweepDir) -> int:
    """Return the number of trials that have a record."""
    return sum(trial.read_record() is not None for trial in sweep.trials())


def test_a_killed_sweep_samples_the_same_trials(demonstrations: Path, tmp_path: Path) -> None:
    (tmp_path / "searched.yaml").write_text(SPACE)
    options = [
        "search_space=searched.yaml",
        f"data.dataset_dir={demonstrations}",
        "task.max_episode_steps=60",
        "tune.max_concurrent_trials=1",
        "cluster.num_cpus=2",
        "cluster.include_dashboard=false",
    ]
    whole = run_command("tune", *options, "run_name=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr

    killed = begin_command("tune", *options, "run_name=killed", cwd=tmp_path)
    sweep = SweepDir(tmp_path / "runs/killed")
    while num_ended(sweep) < KILLED_AFTER:
        assert killed.poll() is None
        time.sleep(0.2)
    time.sleep(1)  # the next trial has been sampled and starts
    killed.kill()
    killed.communicate(timeout=COMMAND_TIMEOUT_S)
    assert [*map(bool, choices(sweep).values())].count(False) > 0

    resumed = run_command("tune", "resume=auto", "run_name=killed", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    expected = choices(SweepDir(tmp_path / "runs/whole"))
    assert choices(sweep) == expected and all(expected.values()) and len(expected) == NUM_TRIALS
    results = [
        {
            trial["name"]: trial["metrics"][SUCCESS_RATE]
            for trial in json.loads((tmp_path / "runs" / name / "sweep.json").read_text())["trials"]
        }
        for name in ("whole", "killed")
    ]
    assert results[0] == results[1] and len(results[0]) == NUM_TRIALS
