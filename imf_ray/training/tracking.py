"""What a run writes down: where its workers live, a file of metrics, and SwanLab."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from imf_ray.config import config_to_dict
from imf_ray.errors import UserError
from imf_ray.files import write_atomically
from imf_ray.schema import Config
from imf_ray.training.checkpoint import VALIDATED_STEP, read_validations

METRICS_FILE, WORKERS_DIR, SWANLAB_DIR = "metrics.jsonl", "workers", "swanlab"


@dataclass(frozen=True)
class WorkerRecord:
    """Where one rank of a run lives."""

    rank: int
    pid: int
    host: str
    gpu_ids: list[int]
    log_path: str
    placement_group: str | None
    """Hex id of the placement group that holds the run's workers."""


def record_worker(run_dir: Path, rank: int) -> None:
    """Write this process's `WorkerRecord` into the run's folder."""
    context = ray.get_runtime_context()
    folder = Path(ray._private.worker._global_node.get_logs_dir_path())
    logs = sorted(folder.glob(f"worker-{context.get_worker_id()}-*.err"))
    record = WorkerRecord(
        rank=rank,
        pid=os.getpid(),
        host=socket.gethostname(),
        gpu_ids=[int(i) for i in context.get_accelerator_ids().get("GPU", [])],
        log_path=str(logs[0]) if logs else str(folder),
        placement_group=context.get_placement_group_id(),
    )
    path = run_dir / WORKERS_DIR / f"rank_{rank}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(asdict(record)))


class SampleLog:
    """One rank's record of the samples of each step: lines `{"step": ..., "samples": [...]}`.

    A step that is done again after a failure has a line again.
    """

    def __init__(self, run_dir: Path, rank: int) -> None:
        # One write a line: it is there or not, whenever the worker dies.
        self._file = (run_dir / f"samples_rank_{rank}.jsonl").open("ab", buffering=0)

    def log(self, step: int, samples: np.ndarray) -> None:
        """Log the sample ids (n,) of the update after `step` updates."""
        line = json.dumps({"step": step, "samples": samples.tolist()}) + "\n"
        self._file.write(line.encode())


class Tracker:
    """Rank 0's record of a run: `metrics.jsonl`, and SwanLab where asked for."""

    def __init__(self, run_dir: Path, config: Config, start_step: int) -> None:
        self._config = config
        self._run_dir = run_dir
        self._logged = _validated_steps(run_dir / METRICS_FILE)
        self._file = (run_dir / METRICS_FILE).open("a", buffering=1)
        self._swanlab_dir = run_dir / SWANLAB_DIR
        self._swanlab = _start_swanlab(run_dir, config) if config.train.use_swanlab else None
        self._last_step, self._last_time = start_step, time.monotonic()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log training metrics after `step` updates."""
        now = time.monotonic()
        span = max(now - self._last_time, 1e-9)
        speed = (step - self._last_step) * self._config.train.batch_size / span
        self._last_step, self._last_time = step, now
        self._write(step, {**metrics, "samples_per_s": speed})

    def log_diagnostics(self, step: int, found: Mapping[str, float]) -> None:
        """Log what was seen inside the policy after `step` updates."""
        self._write(step, found)

    def log_validations(self) -> dict[str, Any]:
        """Log what validation found out since the last call, each checkpoint once.

        Returns the metrics of the latest one that is new, if any is.
        """
        latest: dict[str, Any] = {}
        for metrics in read_validations(self._run_dir):
            step = metrics[VALIDATED_STEP]
            if step not in self._logged:
                self._logged.add(step)
                self._write(step, {"validated": 1.0, **metrics})
                latest = metrics
        return latest

    @property
    def swanlab_run(self) -> str | None:
        """The address of the SwanLab run, or its folder when it is not online."""
        if self._swanlab is None:
            return None
        try:
            return str(self._swanlab.url)
        except ValueError:  # what SwanLab raises when a run is not online
            return str(self._swanlab_dir)

    def close(self) -> None:
        """Flush everything."""
        self._file.close()
        if self._swanlab is not None:
            self._swanlab.finish()

    def _write(self, step: int, values: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")
        if self._swanlab is not None:
            numbers = {name: v for name, v in values.items() if isinstance(v, (int, float))}
            self._swanlab.log(numbers, step=step)


def _validated_steps(metrics_file: Path) -> set[int]:
    """Steps whose validation an earlier session of the run has logged."""
    if not metrics_file.is_file():
        return set()
    lines = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    return {int(line["step"]) for line in lines if "validated" in line}


def read_workers(run_dir: Path) -> list[dict[str, Any]]:
    """The `WorkerRecord`s that the run's workers left, as plain dictionaries."""
    return [json.loads(p.read_text()) for p in sorted((run_dir / WORKERS_DIR).glob("*.json"))]


def check_tracking(config: Config) -> None:
    """See that what is asked of SwanLab is installed.

    Raises:
        UserError: the local board is not.
    """
    local = config.train.use_swanlab and config.train.swanlab_mode == "local"
    if local and importlib.util.find_spec("swanboard") is None:
        raise UserError(
            "train.swanlab_mode=local needs SwanLab's board: pip install 'swanlab[dashboard]', or "
            "choose train.swanlab_mode=offline."
        )


def swanlab_mode(config: Config) -> str:
    """How SwanLab records the run: as configured, but offline where nobody is logged in."""
    import swanlab

    mode = config.train.swanlab_mode
    return "offline" if mode == "online" and swanlab.Settings().api_key is None else mode


def describe_tracking(config: Config) -> str:
    """One line on where the run is recorded."""
    if not config.train.use_swanlab:
        return "SwanLab: off"
    mode = swanlab_mode(config)
    reason = "" if mode == config.train.swanlab_mode else " (no login found: swanlab login)"
    return f"SwanLab: {mode}{reason}"


def _start_swanlab(run_dir: Path, config: Config) -> Any:
    import swanlab

    folder = run_dir / SWANLAB_DIR
    folder.mkdir(parents=True, exist_ok=True)
    return swanlab.init(
        project=config.train.swanlab_project,
        name=run_dir.name,
        config=config_to_dict(config),
        mode=swanlab_mode(config),
        log_dir=str(folder),
    )
