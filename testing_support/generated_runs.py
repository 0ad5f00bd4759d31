"""Writes folders of runs and sweeps as training writes them, without training."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from imf_ray.checkpoint_dir import CONFIG_FILE, MANIFEST_FILE, checkpoint_name
from imf_ray.config import load_config, to_override, to_yaml
from imf_ray.folders import DATA_MANIFEST_FILE, METRICS_FILE, SPACE_FILE, TRIALS_DIR
from imf_ray.rollout.confidence_intervals import wilson_interval
from imf_ray.sweep.search_space import trial_name

LOG_FREQ, LINE_S, MAX_STEPS = 100, 10.0, 20_000
"""Steps between two lines of a log, seconds between them, and steps of a run."""
LINES_PER_VALIDATION, NUM_EPISODES = 20, 20


class GeneratedRun:
    """A run folder whose log grows by `add_lines`.

    Args:
        path: the folder, which is created.
        params: options of the run that differ from the defaults.
        seed: seed of its numbers.
        started_at: time of its first line in seconds since 1970; None for now.
    """

    def __init__(
        self,
        path: Path,
        params: Mapping[str, Any] | None = None,
        seed: int = 0,
        started_at: float | None = None,
    ) -> None:
        self.path, self._params, self._random = path, dict(params or {}), random.Random(seed)
        self._time = time.time() if started_at is None else started_at
        self._num_lines = 0
        path.mkdir(parents=True)
        options = {**self._params, "train.max_steps": MAX_STEPS}
        config = load_config([to_override(key, value) for key, value in options.items()])
        (path / CONFIG_FILE).write_text(to_yaml(config))
        manifest = {"episodes": [["episode_0000.hdf5", 400, "0"]] * 20, "virtual_shards": 8}
        (path / DATA_MANIFEST_FILE).write_text(json.dumps(manifest))
        workers = path / "workers"
        workers.mkdir()
        worker = {"rank": 0, "pid": 1000 + seed, "host": "node", "gpu_ids": [], "log_path": "/log"}
        (workers / "rank_0.json").write_text(json.dumps({**worker, "placement_group": "0"}))
        self._append({"step": 0, "restarts": 0, "invalid_checkpoints_skipped": 0})

    def add_lines(self, count: int) -> None:
        """Append lines of training, and one of a validation now and then."""
        self._append(*self._lines(count))

    def end(self, status: str, error: str | None = None) -> None:
        """Write the record of a trial that has ended."""
        step = self._num_lines // LINES_PER_VALIDATION * LINES_PER_VALIDATION * LOG_FREQ
        record = {
            "name": self.path.name,
            "params": self._params,
            "status": status,
            "metrics": {"step": step, **self._validation()},
            "best_checkpoint": str(self.path / checkpoint_name(step)) if step else None,
            "run_dir": str(self.path),
            "error": error,
        }
        (self.path / "trial.json").write_text(json.dumps(record))

    def _lines(self, count: int) -> Iterator[dict[str, Any]]:
        for _ in range(count):
            self._num_lines += 1
            step = self._num_lines * LOG_FREQ
            yield {
                "step": step,
                "epoch": step / 500,
                "loss": self._random.uniform(0.9, 1.1) / (1 + step / 1000),
                "lr": 5e-4,
                "data_wait_frac": self._random.uniform(0.0, 0.1),
                "grad_norm": self._random.uniform(0.5, 1.0),
                "grad_norm_max": 1.0,
                "grad_clip_frac": 0.0,
                "samples_per_s": self._random.uniform(90.0, 110.0),
            }
            if self._num_lines % LINES_PER_VALIDATION == 0:
                checkpoint = self.path / checkpoint_name(step)
                checkpoint.mkdir()
                (checkpoint / MANIFEST_FILE).write_text("{}")
                yield {"step": step, "validated": 1.0, "validated_step": step, **self._validation()}

    def _validation(self) -> dict[str, float]:
        successes = self._random.randint(0, NUM_EPISODES)
        low, high = wilson_interval(successes, NUM_EPISODES)
        return {
            "action_error": self._random.uniform(0.01, 0.05),
            "rollout/episodes": float(NUM_EPISODES),
            "rollout/failed": 0.0,
            "rollout/success_rate": successes / NUM_EPISODES,
            "rollout/success_ci_low": low,
            "rollout/success_ci_high": high,
            "rollout/return_mean": float(successes),
            "rollout/stage_1": 1.0,
            "rollout/fps": 100.0,
        }

    def _append(self, *lines: dict[str, Any]) -> None:
        with (self.path / METRICS_FILE).open("a") as log:
            for line in lines:
                self._time += LINE_S
                log.write(json.dumps({"time": self._time, **line}) + "\n")


def generate_sweep(
    path: Path, num_trials: int, num_lines: int, ended: bool = False
) -> list[GeneratedRun]:
    """Write a sweep over the learning rate and the seed, and return its trials.

    Args:
        num_lines: lines of training in the log of each trial.
        ended: every trial has ended; one in ten failed, and one in ten was stopped.
    """
    rates = [1e-4 * (1 + number) for number in range(-(-num_trials // 2))]
    grid = {"train.lr": rates, "train.seed": [0, 1]}
    space = {"name": "generated", "fixed": {}, "grid": grid, "sample": {}, "num_samples": 1}
    path.mkdir(parents=True)
    content = {"space": {**space, "seed": 0, "scheduler": {}}, "overrides": []}
    started_at = time.time() - num_lines * LINE_S
    (path / SPACE_FILE).write_text(json.dumps({**content, "started_at": started_at}))
    trials = []
    for number in range(num_trials):
        params = {"train.lr": rates[number // 2], "train.seed": number % 2}
        folder = path / TRIALS_DIR / trial_name(number, params)
        trial = GeneratedRun(folder, params, number, started_at)
        trial.add_lines(num_lines)
        if ended:
            failed = number % 10 == 3
            status = "failed" if failed else "stopped" if number % 10 == 7 else "finished"
            trial.end(status, "RuntimeError: loss is not finite" if failed else None)
        trials.append(trial)
    return trials
