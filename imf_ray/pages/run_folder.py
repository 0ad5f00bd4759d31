"""One run folder, read into a row of a page."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from imf_ray.checkpoint_dir import (
    CHECKPOINT_GLOB,
    MANIFEST_FILE,
    SUCCESS_RATE,
    VALIDATION_ERROR,
    checkpoint_name,
    checkpoint_step,
)
from imf_ray.pages.commands import checkpoint_commands
from imf_ray.pages.file_cache import FileCache, Version, file_version
from imf_ray.pages.model import Process, Row, State, Success
from imf_ray.pages.run_log import ACTION_ERROR, SPEED, RunLog
from imf_ray.redaction import redact
from imf_ray.rollout.record_store import EVALUATIONS_DIR, GRID_VIDEO
from imf_ray.rollout.records import NUM_EPISODES_METRIC, stage_shares
from imf_ray.storage import display_path
from imf_ray.sweep.trial_record import TrialRecord
from imf_ray.training.run_dir import (
    DEPTH_WEIGHTS_FILE,
    SWANLAB_DIR,
    TRIAL_FILE,
    VIDEOS_DIR,
    WORKERS_DIR,
)

ENDED = {"finished": State.FINISHED, "stopped": State.STOPPED, "failed": State.FAILED}
"""State of a trial by the status in its record."""


class RunFolder:
    """Reads one run again and again, but only those files that changed.

    Args:
        path: local folder of the run, which need not exist yet.
        cache: contents of small files.
    """

    def __init__(self, path: Path, cache: FileCache) -> None:
        self.path = path
        self._cache = cache
        self._trial_file = str(path / TRIAL_FILE)
        self._workers_dir = str(path / WORKERS_DIR)
        self.log = RunLog(str(path))
        self.record: TrialRecord | None = None
        """Result of the trial, if the run is one that has ended."""
        self._workers: Sequence[Mapping[str, Any]] = ()
        self._folder_version: Version | None = None
        self._subfolders: set[str] = set()
        self._saved_steps: list[int] = []

    def read_record(self) -> TrialRecord | None:
        """Read `record` if it changed, and return it."""
        self.record = self._cache.read_json(
            self._trial_file, TrialRecord.from_dict, "The trial is shown without its result."
        )
        return self.record

    def update(self, has_curves: bool = True) -> None:
        """Read what changed since the last call.

        Args:
            has_curves: False reads less of the log of a trial that has ended, see `RunLog.update`.
        """
        record = self.read_record()
        self.log.update(has_curves or record is None)
        self._workers = self._read_workers()
        version = file_version(self.path)
        if version != self._folder_version:
            self._folder_version = version
            self._subfolders = set(os.listdir(self.path)) if version is not None else set()
            checkpoints = map(self.path.joinpath, fnmatch.filter(self._subfolders, CHECKPOINT_GLOB))
            self._saved_steps = sorted(
                checkpoint_step(folder)
                for folder in checkpoints
                if (folder / MANIFEST_FILE).is_file()
            )

    def row(
        self,
        name: str,
        label: str,
        max_steps: int | None,
        now: float,
        max_points: int,
        has_ended: bool,
        params: Mapping[str, Any] | None = None,
    ) -> Row:
        """Return the run as a row.

        Args:
            max_steps: number of updates of the whole run.
            now: time in seconds since 1970.
            max_points: largest number of points of a curve.
            has_ended: no process trains the run any more.
        """
        log = self.log
        state = self._state(max_steps, now, has_ended)
        metrics = self.best_metrics
        checkpoint = self._best_checkpoint(metrics)
        is_active = state in (State.RUNNING, State.STALLED)
        step = log.step if metrics is None or state not in ENDED.values() else int(metrics["step"])
        return Row(
            name=name,
            label=label,
            state=state,
            params=params or {},
            success=success_of(metrics or {}),
            reward=(metrics or {}).get("rollout/return_mean"),
            stages=list(stage_shares(metrics or {}).values()),
            action_error=(metrics or {}).get(ACTION_ERROR),
            step=step if log.pace.last_time is not None or metrics else None,
            max_steps=max_steps,
            saved_step=self._saved_steps[-1] if self._saved_steps else None,
            samples_per_s=log.latest.get(SPEED) if is_active else log.median_speed,
            time_left_s=log.pace.time_left_s(max_steps) if is_active and max_steps else None,
            last_entry_age_s=None
            if log.pace.last_time is None
            else max(0.0, now - log.pace.last_time),
            restarts=log.restarts,
            wall_s=log.wall_s if log.pace.last_time is not None else None,
            cpu_s=self._cpu_s(),
            error=self._error(),
            checkpoint=checkpoint,
            curves=log.curves(max_points),
            processes=list(self._processes()),
            swanlab_run=self._swanlab_run(),
            commands=checkpoint_commands(checkpoint) if checkpoint else {},
            notes=list(self._notes()),
        )

    @property
    def best_metrics(self) -> dict[str, Any] | None:
        """Metrics of the best checkpoint, with its step; None without any."""
        if self.record is not None:
            has_best = self.record.best_checkpoint is not None and "step" in self.record.metrics
            return self.record.metrics if has_best else None
        if self.log.best_validation is not None:
            return self.log.best_validation
        return {"step": self._saved_steps[-1]} if self._saved_steps else None

    def videos(self) -> list[tuple[Path, str]]:
        """Return path and caption of the videos of validations, newest first."""
        if VIDEOS_DIR not in self._subfolders:
            return []
        files = sorted((self.path / VIDEOS_DIR).glob("*.mp4"), reverse=True)
        return [(file, f"Validation at step {_step_in_name(file)}") for file in files]

    def evaluation_videos(self) -> list[tuple[Path, str]]:
        """Return path and caption of the grid videos of evaluations of the run's checkpoints."""
        if EVALUATIONS_DIR not in self._subfolders:
            return []
        files = sorted((self.path / EVALUATIONS_DIR).glob(f"*/{GRID_VIDEO}"))
        return [(file, f"Evaluation {file.parent.name}, failures first") for file in files]

    def images(self) -> list[tuple[Path, str]]:
        """Return path and caption of the images in the folder."""
        return [(self.path / DEPTH_WEIGHTS_FILE, "What each sub-layer reads (attention residuals)")]

    def _state(self, max_steps: int | None, now: float, has_ended: bool) -> State:
        if self.record is not None:
            return ENDED.get(self.record.status, State.FAILED)
        log = self.log
        if log.pace.last_time is None:
            return State.PENDING
        if max_steps is not None and log.step >= max_steps:
            return State.FINISHED
        if has_ended:
            return State.STOPPED
        return State.STALLED if log.pace.is_stalled(now) else State.RUNNING

    def _best_checkpoint(self, metrics: Mapping[str, Any] | None) -> str | None:
        """Return the path or URL of the best checkpoint, also of a folder that was moved."""
        if metrics is None:
            return None
        step = int(metrics["step"])
        if step in self._saved_steps:
            return display_path(self.path / checkpoint_name(step))
        return None if self.record is None else redact(str(self.record.best_checkpoint))

    def _error(self) -> str | None:
        error = None if self.record is None else self.record.error
        failed = self.log.latest.get(VALIDATION_ERROR)
        if error is None and failed is not None:
            error = f"The last validation failed: {failed}"
        return None if error is None else redact(error)

    def _read_workers(self) -> Sequence[Mapping[str, Any]]:
        if self.record is not None and self.record.workers:
            return self.record.workers
        try:
            names = sorted(os.listdir(self._workers_dir))
        except OSError:
            return []
        files = [f"{self._workers_dir}/{name}" for name in names if name.endswith(".json")]
        workers = [self._cache.read_json(file, dict, "It is not shown.") for file in files]
        return [worker for worker in workers if worker is not None]

    def _processes(self) -> Iterator[Process]:
        if self.record is not None and self.record.driver_pid:
            yield Process(None, self.record.driver_pid, self.record.driver_host)
        for worker in self._workers:
            yield Process(
                worker.get("rank"),
                int(worker.get("pid", 0)),
                str(worker.get("host", "")),
                [str(gpu) for gpu in worker.get("gpu_ids", ())],
                str(worker.get("log_path", "")),
            )

    def _cpu_s(self) -> float | None:
        times = [worker["cpu_s"] for worker in self._workers if worker.get("cpu_s") is not None]
        return sum(times) if times else None

    def _swanlab_run(self) -> str | None:
        if self.record is not None and self.record.swanlab_run is not None:
            return redact(self.record.swanlab_run)
        runs = (worker.get("swanlab_run") for worker in self._workers)
        location = next((str(run) for run in runs if run is not None), None)
        if location is None and SWANLAB_DIR in self._subfolders:
            return display_path(self.path / SWANLAB_DIR)
        return None if location is None else redact(location)

    def _notes(self) -> Iterator[str]:
        if self.log.num_damaged:
            yield f"{self.log.num_damaged} damaged line(s) of metrics.jsonl were skipped."
        problem = self._cache.problem(self._trial_file)
        if problem is not None:
            yield problem


def success_of(metrics: Mapping[str, Any]) -> Success | None:
    """Return the success rate of metrics, or None if they have none."""
    names = (SUCCESS_RATE, "rollout/success_ci_low", "rollout/success_ci_high", NUM_EPISODES_METRIC)
    if not all(isinstance(metrics.get(name), (int, float)) for name in names):
        return None
    rate, low, high, episodes = (metrics[name] for name in names)
    return Success(rate, low, high, int(episodes))


def _step_in_name(video: Path) -> str:
    return video.stem.rpartition("_")[2].lstrip("0") or "0"
