"""Logging of a training run.

A run writes metrics.jsonl, gauges for Prometheus and worker records. It can also log charts to
SwanLab and TensorBoard.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import ray

from imf_ray.checkpoint_dir import VALIDATED_STEP, VALIDATION_ERROR
from imf_ray.ray_internals import node_log_dir
from imf_ray.rollout.records import describe_success
from imf_ray.schema import Config
from imf_ray.training.chart_log import ChartLog, charts, missing_lines
from imf_ray.training.gauges import RunGauges
from imf_ray.training.run_dir import RunDir
from imf_ray.training.run_records import (
    INVALID_CHECKPOINTS,
    RESTARTS,
    SKIPPED_EPISODES,
    VALIDATED,
    WorkerRecord,
)
from imf_ray.training.stoppable_dir import StoppableDir
from imf_ray.training.swanlab_log import SwanLabLog, check_swanlab, describe_swanlab
from imf_ray.training.tensorboard_log import TensorBoardLog, check_tensorboard, describe_tensorboard
from imf_ray.video import convert_to_gif

log = logging.getLogger(__name__)


def make_worker_record(rank: int) -> WorkerRecord:
    """Make the `WorkerRecord` of this process, which runs one rank."""
    context = ray.get_runtime_context()
    log_dir = node_log_dir()
    logs = sorted(log_dir.glob(f"worker-{context.get_worker_id()}-*.err"))
    return WorkerRecord(
        rank=rank,
        pid=os.getpid(),
        host=socket.gethostname(),
        gpu_ids=context.get_accelerator_ids().get("GPU", []),
        log_path=str(logs[0]) if logs else str(log_dir),
        placement_group=context.get_placement_group_id() or "",
    )


class SampleLog:
    """Writes one rank's sample ids of each update: lines `{"step": ..., "samples": [...]}`.

    An update that is repeated after a failure is logged again in a new line.
    """

    def __init__(self, run_dir: RunDir, rank: int) -> None:
        self._file = run_dir.open_sample_log(rank)

    def log(self, step: int, sample_ids: np.ndarray) -> None:
        """Log the sample ids (n,) of the update that follows the first `step` updates."""
        self._file.append(json.dumps({"step": step, "samples": sample_ids.tolist()}))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Tracker:
    """Logs a run on rank 0: metrics.jsonl, gauges, and charts if they are enabled.

    metrics.jsonl is the record of the run. The other logs show its values.

    Each launch of the run first writes a line with three counts:

    * `restarts`: number of times the run was resumed;
    * `invalid_checkpoints_skipped`: number of checkpoints that were newer than the one resumed from
      but invalid, summed over all launches;
    * `skipped_episodes`: number of invalid episode files that were skipped.

    Args:
        start_step: training step from which this launch starts.
        num_skipped_episodes: number of invalid episode files that were skipped.
        varied: names of the options that differ between the trials of the run's sweep.
    """

    def __init__(
        self,
        run_dir: RunDir,
        config: Config,
        start_step: int,
        num_skipped_episodes: int,
        varied: Sequence[str] = (),
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        lines = run_dir.read_metrics()
        self._logged_validations = {
            _validation_key(line) for line in lines if {VALIDATED, VALIDATED_STEP} <= line.keys()
        }
        launches = [line for line in lines if RESTARTS in line]
        self._gauges = RunGauges(run_dir.path, config.train.max_steps, lines)
        self._file = run_dir.open_metrics()
        self._swanlab = SwanLabLog(run_dir, config) if config.train.use_swanlab else None
        self._chart_logs: list[ChartLog] = [] if self._swanlab is None else [self._swanlab]
        if config.train.tensorboard:
            self._chart_logs.append(TensorBoardLog(run_dir, config, start_step, varied))
        for chart_log in self._chart_logs:
            for line in missing_lines(lines, start_step, chart_log.is_new):
                _log_charts(chart_log, line)
        self._last_step, self._last_time = start_step, time.monotonic()
        num_invalid = run_dir.count_checkpoints_after(start_step)
        num_invalid += sum(line.get(INVALID_CHECKPOINTS, 0) for line in launches[-1:])
        self._write(
            start_step,
            {
                RESTARTS: len(launches),
                INVALID_CHECKPOINTS: num_invalid,
                SKIPPED_EPISODES: num_skipped_episodes,
            },
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log training metrics after `step` updates, and `samples_per_s` since the last call."""
        now = time.monotonic()
        elapsed_s = max(now - self._last_time, 1e-9)
        num_samples = (step - self._last_step) * self._config.train.batch_size
        self._last_step, self._last_time = step, now
        self._write(step, {**metrics, "samples_per_s": num_samples / elapsed_s})

    def log_diagnostics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log diagnostic metrics of the policy (`run_diagnostics`) after `step` updates."""
        self._write(step, metrics)

    def log_validations(self) -> list[dict[str, Any]]:
        """Log and return the validations that ended since the last call.

        A failed validation can be retried. A checkpoint may thus have one failed and one successful
        result; each of them is logged once.
        """
        new = []
        for metrics in self._run_dir.read_validations():
            key = _validation_key(metrics)
            if key not in self._logged_validations:
                self._logged_validations.add(key)
                self._write(metrics[VALIDATED_STEP], {VALIDATED: 1.0, **metrics})
                self._log_video(metrics)
                new.append(metrics)
        return new

    @property
    def swanlab_run(self) -> str | None:
        """URL of an online SwanLab run, or folder of an offline one; None if SwanLab is off."""
        return None if self._swanlab is None else self._swanlab.location

    def close(self) -> None:
        """Close all logs, and upload those of charts if the run has a URL."""
        self._gauges.close()
        self._file.close()
        self._for_each_chart_log(lambda chart_log: chart_log.close())
        self._run_dir.upload_charts()

    def _write(self, step: int, metrics: Mapping[str, Any]) -> None:
        line = {"step": step, "time": time.time(), **metrics}
        self._file.append(json.dumps(line))
        self._gauges.add(line)
        self._for_each_chart_log(lambda chart_log: _log_charts(chart_log, line))

    def _log_video(self, validation: Mapping[str, Any]) -> None:
        """Log the video of a validation, if there is one and a log that shows it."""
        step = validation[VALIDATED_STEP]
        video = self._run_dir.read_validation_video(step) if self._chart_logs else None
        if video is None:
            return
        gif, caption = convert_to_gif(video), f"First episode after {step} steps"
        success = describe_success(validation)
        if success is not None:
            caption += f"; success in all episodes {success}"
        self._for_each_chart_log(lambda chart_log: chart_log.log_video(step, gif, caption))

    def _for_each_chart_log(self, action: Callable[[ChartLog], None]) -> None:
        """Call `action` with each chart log. Training continues without one that fails."""
        for chart_log in [*self._chart_logs]:
            try:
                action(chart_log)
            except Exception:  # metrics.jsonl has the values
                log.exception("%s ends until the next launch", type(chart_log).__name__)
                self._chart_logs.remove(chart_log)


def _log_charts(chart_log: ChartLog, line: Mapping[str, Any]) -> None:
    """Log the charts of a line of metrics.jsonl."""
    chart_log.log(line["step"], line.get("time", time.time()), charts(line))


def _validation_key(metrics: Mapping[str, Any]) -> tuple[int, bool]:
    """Return the step of a validated checkpoint, and True if its validation failed."""
    return int(metrics[VALIDATED_STEP]), VALIDATION_ERROR in metrics


def check_tracking(config: Config) -> None:
    """Check that the enabled chart logs can start.

    Raises:
        UserError: one of them is not installed, or an option is invalid.
    """
    if config.train.use_swanlab:
        check_swanlab(config)
    if config.train.tensorboard:
        check_tensorboard()


def describe_tracking(
    config: Config,
    folder: StoppableDir,
    is_sweep: bool = False,
    swanlab_run: str | None = None,
) -> list[str]:
    """Return a line for each enabled chart log, with the command that shows or uploads it.

    Args:
        folder: the folder of the run, or of the sweep if `is_sweep`.
        swanlab_run: see `Tracker.swanlab_run`; None while it is unknown.
    """
    lines = []
    if config.train.use_swanlab:
        lines.append(describe_swanlab(config, folder, is_sweep, swanlab_run))
    if config.train.tensorboard:
        lines.append(describe_tensorboard(folder, is_sweep))
    return lines
