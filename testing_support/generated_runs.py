"""Writes folders of runs and sweeps as training writes them, without training.

They have no weights. The same arguments always give the same numbers.
"""

from __future__ import annotations

import json
import math
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from imf_ray.checkpoint_dir import CONFIG_FILE, MANIFEST_FILE, checkpoint_name
from imf_ray.config import load_config, to_yaml
from imf_ray.folders import DATA_MANIFEST_FILE, METRICS_FILE, SPACE_FILE, TRIALS_DIR
from imf_ray.rollout.confidence_intervals import wilson_interval
from imf_ray.sweep.search_space import SearchSpace, trial_name
from imf_ray.sweep.sweep_dir import BASELINES_FILE, SavedSpace
from imf_ray.sweep.trial_record import FAILED, FINISHED, STOPPED
from imf_ray.training.run_dir import TRIAL_FILE, VIDEOS_DIR
from imf_ray.training.run_records import VAL_EPISODES_KEY
from imf_ray.yaml_text import dump_value

LOG_FREQ, LINE_S, MAX_STEPS = 100, 10.0, 20_000
"""Steps between two lines of a log, seconds between them, and steps of a run."""
LINES_PER_VALIDATION, NUM_EPISODES, BATCH_SIZE, NUM_STAGES = 20, 20, 10, 4
RUNNING, PENDING = "running", "pending"
MIXED = (FINISHED, FINISHED, STOPPED, FINISHED, FAILED, FINISHED, FINISHED)
"""Statuses of the trials of an ended sweep, in turn."""
EARLY = 0.6
"""Share of the lines that trials have which ended early, or still run."""
GRID: dict[str, list[Any]] = {"agent.head.n_emb": [32, 64, 96, 128], "agent.head.n_layer": [2, 4]}
DISTRIBUTIONS: dict[str, dict[str, list[Any]]] = {
    "train.lr": {"loguniform": [1e-4, 1e-2]},
    "train.weight_decay": {"loguniform": [1e-6, 1e-2]},
    "agent.head.n_layer": {"choice": [2, 4, 8]},
    "agent.time_sampler": {"choice": ["uniform", "endpoint_mix"]},
}
ERROR = "Training diverged: the gradient norm is inf at step 40."


class GeneratedRun:
    """A run folder whose log grows by `add_lines`.

    Args:
        path: the folder, which is created.
        params: options of the run that differ from those of other runs.
        seed: seed of its numbers.
        started_at: time of its first line in seconds since 1970; None for now.
        max_steps: number of updates of the whole run.
        video: content of the video of each validation; None writes none.
    """

    def __init__(
        self,
        path: Path,
        params: Mapping[str, Any] | None = None,
        seed: int = 0,
        started_at: float | None = None,
        max_steps: int = MAX_STEPS,
        video: bytes | None = None,
    ) -> None:
        self.path, self._params, self._random = path, dict(params or {}), random.Random(seed)
        self._time = time.time() if started_at is None else started_at
        self._max_steps, self._video = max_steps, video
        self._skill = self._random.uniform(0.2, 0.95)
        self._num_lines = 0
        self._best: dict[str, float] = {}
        path.mkdir(parents=True)
        write_config(path, self._params, max_steps)
        worker = {"rank": 0, "pid": 1000 + seed, "host": "node", "gpu_ids": [], "log_path": "/log"}
        (path / "workers").mkdir()
        (path / "workers/rank_0.json").write_text(json.dumps({**worker, "placement_group": "0"}))
        self.append({"step": 0, "restarts": 0, "invalid_checkpoints_skipped": 0})

    def add_lines(self, count: int) -> None:
        """Append lines of training, and one of a validation now and then."""
        self.append(*self._lines(count))

    def append(self, *lines: Mapping[str, Any]) -> None:
        """Append lines, each later than the one before unless it has a time."""
        with (self.path / METRICS_FILE).open("a") as log:
            for line in lines:
                self._time += LINE_S
                log.write(json.dumps({"time": self._time, **line}) + "\n")

    def end(self, status: str, error: str | None = None) -> None:
        """Write the record of a trial that has ended."""
        best = {} if status == FAILED else self._best
        checkpoint = self.path / checkpoint_name(int(best.get("step", 0)))
        record = {
            "name": self.path.name,
            "params": self._params,
            "status": status,
            "metrics": best,
            "best_checkpoint": str(checkpoint) if best else None,
            "run_dir": str(self.path),
            "driver_pid": 999,
            "driver_host": "node",
            "workers": [json.loads((self.path / "workers/rank_0.json").read_text())],
            "error": error,
        }
        (self.path / TRIAL_FILE).write_text(json.dumps(record))

    def _lines(self, count: int) -> Iterator[dict[str, Any]]:
        for _ in range(count):
            self._num_lines += 1
            step = self._num_lines * LOG_FREQ
            progress = step / self._max_steps
            yield {
                "step": step,
                "epoch": step / 500,
                "loss": self._random.uniform(0.9, 1.1) * math.exp(-3 * self._skill * progress),
                "lr": 5e-4 * min(1.0, step / 1000) * (1.0 - 0.9 * min(progress, 1.0)),
                "data_wait_frac": self._random.uniform(0.0, 0.1),
                "grad_norm": self._random.uniform(0.5, 1.0),
                "grad_norm_max": 1.0,
                "grad_clip_frac": 0.0,
                "samples_per_s": LOG_FREQ * BATCH_SIZE / LINE_S * self._random.uniform(0.9, 1.1),
            }
            if self._num_lines % LINES_PER_VALIDATION == 0:
                yield self._validation(step, progress)

    def _validation(self, step: int, progress: float) -> dict[str, float]:
        """Write a checkpoint with its video, and return the line of its validation."""
        checkpoint = self.path / checkpoint_name(step)
        checkpoint.mkdir()
        (checkpoint / MANIFEST_FILE).write_text("{}")
        if self._video is not None:
            (self.path / VIDEOS_DIR).mkdir(exist_ok=True)
            (self.path / VIDEOS_DIR / f"{checkpoint.name}.mp4").write_bytes(self._video)
        success = self._skill * (1 - math.exp(-4 * progress))
        line = {
            "step": step,
            "validated": 1.0,
            "validated_step": step,
            "action_error": 0.3 * math.exp(-2 * self._skill * progress),
            **rollout_metrics(success, self._random),
        }
        if line["rollout/success_rate"] >= self._best.get("rollout/success_rate", 0.0):
            self._best = line
        return line


def generate_sweep(
    path: Path,
    num_trials: int,
    num_lines: int,
    statuses: Sequence[str] = (RUNNING,),
    max_steps: int = MAX_STEPS,
    random_options: bool = False,
    video: bytes | None = None,
) -> list[GeneratedRun]:
    """Write a sweep and return its trials, except for those that have not begun.

    Args:
        num_lines: lines of training in the log of a trial. Trials that failed or were stopped have
            fewer, and so have running ones if so many lines complete a run.
        statuses: `RUNNING`, `PENDING` or the status of each trial's record, in turn.
        max_steps: number of updates of each trial.
        random_options: vary four options at random. Otherwise they are a grid over width and
            depth, and over as many seeds as that takes.
        video: content of the videos of validations; None writes none.
    """
    numbers = random.Random(0)
    space = SearchSpace("generated", grid=_grid(num_trials))
    trials = {trial_name(n, params): params for n, params in enumerate(space.combinations())}
    if random_options:
        space = SearchSpace("generated", sample=DISTRIBUTIONS, num_samples=num_trials)
        samples = (_sample(numbers) for _ in range(num_trials))
        trials = {trial_name(number, params): params for number, params in enumerate(samples)}
    trials = dict([*trials.items()][:num_trials])
    path.mkdir(parents=True)
    now = time.time()
    saved = SavedSpace(space, [f"train.max_steps={max_steps}"], now - num_lines * LINE_S, trials)
    (path / SPACE_FILE).write_text(json.dumps(saved.to_json()))
    baselines = {"expert": 0.98, "untrained:checkpoint": 0.0}
    (path / BASELINES_FILE).write_text(
        json.dumps({name: rollout_metrics(rate, numbers) for name, rate in baselines.items()})
    )
    runs = []
    for number, (name, params) in enumerate(trials.items()):
        status = statuses[number % len(statuses)]
        if status == PENDING:
            (path / TRIALS_DIR / name).mkdir(parents=True)
            write_config(path / TRIALS_DIR / name, params, max_steps)
            continue
        is_complete = status == RUNNING and num_lines * LOG_FREQ >= max_steps
        ends_early = status in (STOPPED, FAILED) or is_complete
        count = int(num_lines * EARLY) if ends_early else num_lines
        started_at = now - (count + count // LINES_PER_VALIDATION + 1) * LINE_S
        folder = path / TRIALS_DIR / name
        run = GeneratedRun(folder, params, number, started_at, max_steps, video)
        run.add_lines(count)
        if status != RUNNING:
            run.end(status, ERROR if status == FAILED else None)
        runs.append(run)
    return runs


def write_config(run: Path, params: Mapping[str, Any], max_steps: int) -> None:
    """Write the configuration and the data manifest of a run."""
    text = _config_text(max_steps)
    for key, value in params.items():  # in the text, since parsing takes long
        name = re.escape(key.rpartition(".")[2])
        line = f"\\g<1>{dump_value(value)}"
        text = re.sub(rf"(?m)^( +{name}: ).*$", line, text, count=1)
    (run / CONFIG_FILE).write_text(text)
    episodes = [[f"episode_{number}.hdf5", 400, "0" * 16] for number in range(45)]
    held_out = [{"path": f"episode_{number}.hdf5"} for number in range(45, 50)]
    manifest = {"episodes": episodes, "virtual_shards": 8, VAL_EPISODES_KEY: held_out}
    (run / DATA_MANIFEST_FILE).write_text(json.dumps(manifest))


def rollout_metrics(success: float, numbers: random.Random) -> dict[str, float]:
    """Return the metrics of rollouts of a policy with a probability of success."""
    successes = sum(numbers.random() < success for _ in range(NUM_EPISODES))
    low, high = wilson_interval(successes, NUM_EPISODES)
    rate = successes / NUM_EPISODES
    touched = min(1.0, 2 * success)
    stages = {
        f"rollout/stage_{stage}": rate + (1 - rate) * (1 - stage / NUM_STAGES) * touched
        for stage in range(1, NUM_STAGES + 1)
    }
    return {
        "rollout/episodes": float(NUM_EPISODES),
        "rollout/failed": 0.0,
        "rollout/success_rate": rate,
        "rollout/success_ci_low": low,
        "rollout/success_ci_high": high,
        "rollout/return_mean": 400.0 * rate,
        "rollout/fps": 100.0,
        **stages,
    }


@cache
def _config_text(max_steps: int) -> str:
    options = ["agent=state_imf_attnres", f"train.batch_size={BATCH_SIZE}"]
    return to_yaml(load_config([*options, f"train.max_steps={max_steps}"]))


def _grid(num_trials: int) -> dict[str, list[Any]]:
    size = math.prod(map(len, GRID.values()))
    seeds = {"train.seed": list(range(-(-num_trials // size)))} if num_trials > size else {}
    return {**GRID, **seeds}


def _sample(numbers: random.Random) -> dict[str, Any]:
    return {
        "train.lr": float(f"{10 ** numbers.uniform(-4, -2):.4g}"),
        "train.weight_decay": float(f"{10 ** numbers.uniform(-6, -2):.4g}"),
        "agent.head.n_layer": numbers.choice([2, 4, 8]),
        "agent.time_sampler": numbers.choice(["uniform", "endpoint_mix"]),
    }
