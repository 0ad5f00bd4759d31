"""Folders of sweeps with generated records, for pages about many trials.

They have the files of a real sweep, but no weights. The same arguments always give the same files.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imf_ray.checkpoint_dir import (
    CONFIG_FILE,
    MANIFEST_FILE,
    SUCCESS_RATE,
    VALIDATED_STEP,
    checkpoint_name,
    checkpoint_rank_key,
)
from imf_ray.config import load_config, to_yaml
from imf_ray.folders import DATA_MANIFEST_FILE, METRICS_FILE, SPACE_FILE, TRIALS_DIR
from imf_ray.rollout.confidence_intervals import wilson_interval
from imf_ray.rollout.records import NUM_EPISODES_METRIC, STAGE_METRIC
from imf_ray.sweep.search_space import SearchSpace, trial_name
from imf_ray.sweep.sweep_dir import BASELINES_FILE, SavedSpace
from imf_ray.sweep.trial_record import FAILED, FINISHED, STOPPED, TrialRecord
from imf_ray.training.run_dir import TRIAL_FILE, VIDEOS_DIR
from imf_ray.training.run_records import RESTARTS, VAL_EPISODES_KEY, VALIDATED
from imf_ray.yaml_text import dump_value

RUNNING, PENDING = "running", "pending"
STATUSES = (FINISHED, FINISHED, STOPPED, FINISHED, FAILED, FINISHED, FINISHED)
"""Statuses of the trials in turn, unless others are given."""
LINE_INTERVAL_S = 4.0
LOG_FREQ, SAVE_FREQ, NUM_EPISODES, BATCH_SIZE = 20, 200, 50, 64
FIXED = {"agent": "state_imf_attnres", "train.log_freq": LOG_FREQ, "train.save_freq": SAVE_FREQ}
GRID = {"agent.head.n_emb": [32, 64, 96, 128], "agent.head.n_layer": [2, 4]}


def write_sweep(
    folder: Path,
    num_trials: int = 8,
    max_steps: int = 1200,
    statuses: Sequence[str] = STATUSES,
    random_options: bool = False,
    video: bytes | None = None,
    now: float | None = None,
) -> Path:
    """Write a sweep, and return its folder.

    Args:
        num_trials: number of trials. Without `random_options`, they are the first ones of a grid
            over width and depth, with more and more seeds if they are many.
        max_steps: number of updates of each trial; the log has a line for every 20 of them.
        statuses: statuses of the trials in turn. Running trials have a part of their lines.
        random_options: vary four options at random.
        video: content of the videos; None writes none.
        now: time of the last line in seconds since 1970; None is the current time.
    """
    rng = np.random.default_rng(0)
    space, trials = _random_space(num_trials, rng) if random_options else _grid_space(num_trials)
    fixed = [f"{key}={value}" for key, value in FIXED.items()]
    overrides = [f"train.max_steps={max_steps}", f"train.batch_size={BATCH_SIZE}"]
    yaml = to_yaml(load_config([*fixed, *overrides]))
    folder.mkdir(parents=True)
    end = time.time() if now is None else now
    saved = SavedSpace(space, overrides, end - max_steps / LOG_FREQ * LINE_INTERVAL_S, trials)
    (folder / SPACE_FILE).write_text(json.dumps(saved.to_json()))
    baselines = {
        "expert": _rollout_metrics(0.98, rng),
        "untrained:checkpoint": _rollout_metrics(0.0, rng),
    }
    (folder / BASELINES_FILE).write_text(json.dumps(baselines))
    for number, (name, params) in enumerate(trials.items()):
        status = statuses[number % len(statuses)]
        run = folder / TRIALS_DIR / name
        run.mkdir(parents=True)
        (run / CONFIG_FILE).write_text(_with_params(yaml, params))
        (run / DATA_MANIFEST_FILE).write_text(_data_manifest())
        if status != PENDING:
            _write_run(run, params, status, max_steps, end, rng, video)
    return folder


def write_run(folder: Path, max_steps: int = 1200, now: float | None = None) -> Path:
    """Write a single run that is still training, and return its folder."""
    config = load_config(
        [*(f"{key}={value}" for key, value in FIXED.items()), f"train.max_steps={max_steps}"]
    )
    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_text(to_yaml(config))
    (folder / DATA_MANIFEST_FILE).write_text(_data_manifest())
    rng, end = np.random.default_rng(1), time.time() if now is None else now
    _write_run(folder, {}, RUNNING, max_steps, end, rng, None)
    return folder


def append_lines(run: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Add lines to the log of a run, as if it went on."""
    with (run / METRICS_FILE).open("a") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in lines)


def _grid_space(num_trials: int) -> tuple[SearchSpace, dict[str, dict[str, Any]]]:
    size = math.prod(map(len, GRID.values()))
    grid: dict[str, list[Any]] = dict(GRID)
    if num_trials > size:
        grid["train.seed"] = list(range(-(-num_trials // size)))
    space = SearchSpace("generated", fixed=dict(FIXED), grid=grid)
    combinations = space.combinations()[:num_trials]
    return space, {trial_name(n, params): params for n, params in enumerate(combinations)}


def _random_space(
    num_trials: int, rng: np.random.Generator
) -> tuple[SearchSpace, dict[str, dict[str, Any]]]:
    sample: dict[str, dict[str, list[Any]]] = {
        "train.lr": {"loguniform": [1e-4, 1e-2]},
        "train.weight_decay": {"loguniform": [1e-6, 1e-2]},
        "agent.head.n_layer": {"choice": [2, 4, 8]},
        "agent.time_sampler": {"choice": ["uniform", "endpoint_mix"]},
    }
    space = SearchSpace("generated", fixed=dict(FIXED), sample=sample, num_samples=num_trials)
    trials = {}
    for number in range(num_trials):
        params = {
            "train.lr": float(f"{10 ** rng.uniform(-4, -2):.4g}"),
            "train.weight_decay": float(f"{10 ** rng.uniform(-6, -2):.4g}"),
            "agent.head.n_layer": int(rng.choice([2, 4, 8])),
            "agent.time_sampler": str(rng.choice(["uniform", "endpoint_mix"])),
        }
        trials[trial_name(number, params)] = params
    return space, trials


def _write_run(
    run: Path,
    params: Mapping[str, Any],
    status: str,
    max_steps: int,
    end: float,
    rng: np.random.Generator,
    video: bytes | None,
) -> None:
    skill = float(rng.uniform(0.2, 0.95))
    share = 1.0 if status == FINISHED else float(rng.uniform(0.3, 0.8))
    last_step = max(LOG_FREQ, int(max_steps * share) // LOG_FREQ * LOG_FREQ)
    lines = list(_lines(skill, last_step, max_steps, end, rng))
    append_lines(run, lines)
    validations = {line["step"]: line for line in lines if VALIDATED in line}
    for step in range(SAVE_FREQ, last_step + 1, SAVE_FREQ):
        folder = run / checkpoint_name(step)
        folder.mkdir()
        manifest = {"metrics": {"step": step}, "files": {}}
        (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
        if video is not None:
            path = run / VIDEOS_DIR / f"{checkpoint_name(step)}.mp4"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(video)
    if status == RUNNING:
        return
    best = min(validations.values(), key=checkpoint_rank_key, default=None)
    is_failed = status == FAILED
    record = TrialRecord(
        name=run.name,
        params=dict(params),
        status=status,
        metrics={} if best is None or is_failed else best,
        best_checkpoint=None
        if best is None or is_failed
        else str(run / checkpoint_name(int(best["step"]))),
        run_dir=str(run),
        driver_pid=1000,
        driver_host="generated",
        workers=[{"rank": 0, "pid": 1001, "host": "generated", "gpu_ids": [], "log_path": "log"}],
        error="Training diverged: the gradient norm is inf at step 40." if is_failed else None,
    )
    (run / TRIAL_FILE).write_text(json.dumps(dataclasses.asdict(record)))


def _lines(
    skill: float, last_step: int, max_steps: int, end: float, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log that ends at the time `end`."""
    start = end - last_step / LOG_FREQ * LINE_INTERVAL_S
    counts = {"invalid_checkpoints_skipped": 0, "skipped_episodes": 0}
    yield {"step": 0, "time": start, RESTARTS: 0, **counts}
    for step in range(LOG_FREQ, last_step + 1, LOG_FREQ):
        at = start + step / LOG_FREQ * LINE_INTERVAL_S
        progress = step / max_steps
        loss = math.exp(-3 * skill * progress) * float(rng.uniform(0.9, 1.1))
        yield {
            "step": step,
            "time": at,
            "epoch": step / 100,
            "loss": loss,
            "lr": 1e-3 * min(1.0, step / 100) * (1.0 - 0.9 * progress),
            "data_wait_frac": 0.02,
            "grad_norm": float(rng.uniform(0.5, 2.0)),
            "samples_per_s": LOG_FREQ * BATCH_SIZE / LINE_INTERVAL_S * float(rng.uniform(0.9, 1.1)),
        }
        if step % SAVE_FREQ == 0:
            success = skill * (1 - math.exp(-4 * progress))
            yield {
                "step": step,
                "time": at,
                VALIDATED: 1.0,
                VALIDATED_STEP: step,
                **_rollout_metrics(success, rng),
                "action_error": 0.3 * math.exp(-2 * skill * progress),
            }


def _rollout_metrics(success: float, rng: np.random.Generator) -> dict[str, float]:
    successes = int(rng.binomial(NUM_EPISODES, success))
    low, high = wilson_interval(successes, NUM_EPISODES)
    rate = successes / NUM_EPISODES
    stages = {
        f"{STAGE_METRIC}{stage}": rate + (1 - rate) * (1 - stage / 4) * min(1.0, 2 * success)
        for stage in range(1, 5)
    }
    return {
        NUM_EPISODES_METRIC: float(NUM_EPISODES),
        "rollout/failed": 0.0,
        SUCCESS_RATE: rate,
        "rollout/success_ci_low": low,
        "rollout/success_ci_high": high,
        "rollout/return_mean": 400 * rate,
        **stages,
    }


def _with_params(yaml: str, params: Mapping[str, Any]) -> str:
    """Return a configuration with other values, without parsing it, which would take long."""
    for key, value in params.items():
        name = re.escape(key.rpartition(".")[2])
        yaml = re.sub(rf"(?m)^( +{name}:).*$", rf"\1 {dump_value(value)}", yaml, count=1)
    return yaml


def _data_manifest() -> str:
    episodes = [[f"episode_{number}.hdf5", 400, "0" * 16] for number in range(45)]
    held_out = [{"path": f"episode_{number}.hdf5"} for number in range(45, 50)]
    return json.dumps({"episodes": episodes, "virtual_shards": 8, VAL_EPISODES_KEY: held_out})
