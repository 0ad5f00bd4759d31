"""What a run tells: where its workers live, a file of metrics, gauges, and SwanLab."""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from imf_ray.config import config_to_dict
from imf_ray.errors import StorageError, UserError
from imf_ray.files import JsonlWriter, read_lines, retry_io, write_atomically
from imf_ray.schema import Config
from imf_ray.storage import (
    AnyPath,
    authoritative_path,
    download,
    exists,
    read_text_or_none,
    storage_errors,
    upload,
)
from imf_ray.training.checkpoint import (
    CHECKPOINT_GLOB,
    VALIDATED_STEP,
    VALIDATION_ERROR,
    checkpoint_step,
    read_validations,
    validation_video,
)
from imf_ray.training.gauges import Gauges
from imf_ray.video import decode_video, encode_gif

METRICS_FILE, WORKERS_DIR, SWANLAB_DIR = "metrics.jsonl", "workers", "swanlab"
WORKERS_LOST_FILE = "lost"
"""Beside the records of workers: they have died."""
RESTARTS = "restarts"
RUN_ID = "run_id"
"""In `SWANLAB_DIR`: what names the run at SwanLab, where it is online."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerRecord:
    """Where one rank of a run lives."""

    rank: int
    pid: int
    host: str
    gpu_ids: list[str]
    """As Ray names them: numbers, mostly, or UUIDs."""
    log_path: str
    placement_group: str
    """Hex id of the place that it holds, with the other ranks."""


def write_worker_record(run_dir: Path, rank: int) -> None:
    """Write this process's `WorkerRecord` into the run's folder."""
    context = ray.get_runtime_context()
    folder = Path(ray._private.worker._global_node.get_logs_dir_path())
    logs = sorted(folder.glob(f"worker-{context.get_worker_id()}-*.err"))
    record = WorkerRecord(
        rank=rank,
        pid=os.getpid(),
        host=socket.gethostname(),
        gpu_ids=context.get_accelerator_ids().get("GPU", []),
        log_path=str(logs[0]) if logs else str(folder),
        placement_group=context.get_placement_group_id() or "",
    )
    path = run_dir / WORKERS_DIR / f"rank_{rank}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(asdict(record)))


class SampleLog:
    """One rank's record of the samples of each step: lines `{"step": ..., "samples": [...]}`.

    A step that is done again after a failure has a line again.
    """

    def __init__(self, run_dir: Path, rank: int) -> None:
        self._file = JsonlWriter(run_dir / f"samples_rank_{rank}.jsonl")

    def log(self, step: int, samples: np.ndarray) -> None:
        """Log the sample ids (n,) of the update after `step` updates."""
        line = json.dumps({"step": step, "samples": samples.tolist()})
        retry_io(lambda: self._file.add(line))

    def close(self) -> None:
        """Close the file."""
        retry_io(self._file.close)


class Tracker:
    """Rank 0's record of a run: `metrics.jsonl`, Ray's gauges, and SwanLab where asked for.

    It begins with a line of how the run came here: its `restarts`, the bad checkpoints that were
    passed over for the one it goes on from (`invalid_checkpoints_skipped`, of all starts), and the episode
    files that were left out (`skipped_episodes`).
    """

    def __init__(
        self, run_dir: Path, config: Config, start_step: int, skipped_episodes: int
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        before = read_metrics(run_dir / METRICS_FILE)
        self._logged = {_validation_key(line) for line in before if "validated" in line}
        starts = [line for line in before if RESTARTS in line]
        self._gauges = Gauges(run_dir.name)
        self._file = retry_io(lambda: JsonlWriter(run_dir / METRICS_FILE))
        self._swanlab_dir = run_dir / SWANLAB_DIR
        self._swanlab = _start_swanlab(run_dir, config) if config.train.use_swanlab else None
        self._last_step, self._last_time = start_step, time.monotonic()
        passed_over = sum(
            checkpoint_step(path) > start_step for path in run_dir.glob(CHECKPOINT_GLOB)
        )
        fallbacks = sum(line["invalid_checkpoints_skipped"] for line in starts[-1:]) + passed_over
        start = {"invalid_checkpoints_skipped": fallbacks, "skipped_episodes": skipped_episodes}
        self._write(start_step, {RESTARTS: len(starts), **start})

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

    def log_validations(self) -> list[dict[str, Any]]:
        """Log what validation found out since the last call, and return it: of each checkpoint
        once, or twice where it had failed.
        """
        found = []
        for metrics in retry_io(lambda: read_validations(self._run_dir)):
            step = metrics[VALIDATED_STEP]
            if _validation_key(metrics) not in self._logged:
                self._logged.add(_validation_key(metrics))
                self._write(step, {"validated": 1.0, **metrics})
                self._show_video(step)
                found.append(metrics)
        return found

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
        self._gauges.close()
        retry_io(self._file.close)
        if self._swanlab is not None:
            self._swanlab.finish()
            retry_io(lambda: upload(self._swanlab_dir))

    def _show_video(self, step: int) -> None:
        if self._swanlab is None:
            return
        video = validation_video(self._run_dir, step)
        retry_io(lambda: download(video))
        if video.is_file():
            import swanlab

            frames = swanlab.Video(encode_gif(decode_video(video.read_bytes())))
            self._swanlab.log({"rollout/video": frames}, step=step)

    def _write(self, step: int, values: Mapping[str, Any]) -> None:
        line = json.dumps({"step": step, "time": time.time(), **values})
        retry_io(lambda: self._file.add(line))
        self._gauges.set(values)
        if self._swanlab is not None:
            numbers = {name: v for name, v in values.items() if isinstance(v, (int, float))}
            self._swanlab.log(numbers, step=step)


def _validation_key(metrics: Mapping[str, Any]) -> tuple[int, bool]:
    """The step of a checkpoint that was judged, and whether that failed."""
    return int(metrics[VALIDATED_STEP]), VALIDATION_ERROR in metrics


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, which need not be there yet."""
    return [json.loads(line) for line in read_lines(path)]


def merge_metrics(before: Mapping[str, Any], line: Mapping[str, Any]) -> dict[str, Any]:
    """The latest value of each; `step` is that of the training, not of what was judged late."""
    if "validated" not in line:
        return {**before, **line}
    known = {name: value for name, value in before.items() if name != VALIDATION_ERROR}
    return {**known, **line, "step": before.get("step", 0)}


def read_workers(run_dir: Path) -> list[dict[str, Any]]:
    """The `WorkerRecord`s that the run's workers left, as plain dictionaries.

    Raises:
        StorageError: they cannot be read.
    """
    folder = authoritative_path(run_dir / WORKERS_DIR)
    found = []
    with storage_errors(folder, "listed"):
        files: list[AnyPath] = [*folder.glob("*.json")]
    for file in sorted(files, key=str):
        if (text := read_text_or_none(file)) is not None:  # a run that starts anew takes them away
            found.append(json.loads(text))
    return found


def mark_workers_lost(run_dir: Path) -> None:
    """Note that the run's workers have died: nobody shall wait for a checkpoint of theirs."""
    try:
        write_atomically(run_dir / WORKERS_DIR / WORKERS_LOST_FILE, "")
    except StorageError as error:  # whoever waits for it is told that a second Ctrl-C ends that
        log.warning("That workers are gone is not noted: %s", error)


def has_live_workers(run_dir: Path) -> bool:
    """Whether the run has workers that may yet write a checkpoint.

    Raises:
        StorageError: it cannot be told.
    """
    return bool(read_workers(run_dir)) and not exists(
        authoritative_path(run_dir / WORKERS_DIR) / WORKERS_LOST_FILE
    )


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
    """A SwanLab run: online the same one at every start, offline if that cannot be reached."""
    import swanlab

    folder = run_dir / SWANLAB_DIR
    folder.mkdir(parents=True, exist_ok=True)
    start = functools.partial(
        swanlab.init,
        project=config.train.swanlab_project,
        name=run_dir.name,
        config=config_to_dict(config),
        log_dir=str(folder),
    )
    mode = swanlab_mode(config)
    if mode != "online":
        return start(mode=mode)
    name = folder / RUN_ID
    try:
        download(name)
        if not name.is_file():
            write_atomically(name, uuid.uuid4().hex)
        return start(mode=mode, id=name.read_text(), resume="allow")
    except Exception as error:  # whatever the network brings; training does not need it
        log.warning("SwanLab is offline from here on: %s: %s", type(error).__name__, error)
        return start(mode="offline", reinit=True)
