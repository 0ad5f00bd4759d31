"""Logging of a training run.

A run writes metrics.jsonl, Prometheus gauges and worker records. It can also log to SwanLab, an
experiment tracker.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.error import HTTPError

import numpy as np
import ray

from imf_ray.checkpoint_dir import VALIDATED_STEP, VALIDATION_ERROR
from imf_ray.config import config_to_dict
from imf_ray.errors import UserError
from imf_ray.network import open_url
from imf_ray.ray_internals import node_log_dir
from imf_ray.schema import Config
from imf_ray.training.gauges import Gauges
from imf_ray.training.run_dir import RunDir
from imf_ray.training.run_records import (
    INVALID_CHECKPOINTS,
    RESTARTS,
    SKIPPED_EPISODES,
    VALIDATED,
    WorkerRecord,
)
from imf_ray.video import decode_video, encode_gif

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
    """Logs a run on rank 0: metrics.jsonl, Ray's gauges, and SwanLab if it is enabled.

    Each launch of the run first writes a line with three counts:

    * `restarts`: number of times the run was resumed;
    * `invalid_checkpoints_skipped`: number of checkpoints that were newer than the one resumed from
      but invalid, summed over all launches;
    * `skipped_episodes`: number of invalid episode files that were skipped.

    Args:
        start_step: training step from which this launch starts.
        num_skipped_episodes: number of invalid episode files that were skipped.
    """

    def __init__(
        self, run_dir: RunDir, config: Config, start_step: int, num_skipped_episodes: int
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        lines = run_dir.read_metrics()
        self._logged_validations = {
            _validation_key(line) for line in lines if {VALIDATED, VALIDATED_STEP} <= line.keys()
        }
        launches = [line for line in lines if RESTARTS in line]
        self._gauges = Gauges(run_dir.name)
        self._file = run_dir.open_metrics()
        self._swanlab = _start_swanlab(run_dir, config) if config.train.use_swanlab else None
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
                step = metrics[VALIDATED_STEP]
                self._write(step, {VALIDATED: 1.0, **metrics})
                self._log_video(step)
                new.append(metrics)
        return new

    @property
    def swanlab_run(self) -> str | None:
        """URL of an online SwanLab run, or folder of an offline one; None if SwanLab is off."""
        if self._swanlab is None:
            return None
        try:
            return str(self._swanlab.url)
        except ValueError:  # raised by SwanLab for offline runs
            return str(self._run_dir.swanlab_dir)

    def close(self) -> None:
        """Close the log file and the gauges, and finish the SwanLab run."""
        self._gauges.close()
        self._file.close()
        if self._swanlab is not None:
            self._swanlab.finish()
            self._run_dir.upload_swanlab()

    def _log_video(self, step: int) -> None:
        if self._swanlab is None:
            return
        content = self._run_dir.read_validation_video(step)
        if content is not None:
            import swanlab

            video = swanlab.Video(encode_gif(decode_video(content)))
            self._swanlab.log({"rollout/video": video}, step=step)

    def _write(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._file.append(json.dumps({"step": step, "time": time.time(), **metrics}))
        self._gauges.set(metrics)
        if self._swanlab is not None:
            numbers = {name: v for name, v in metrics.items() if isinstance(v, (int, float))}
            self._swanlab.log(numbers, step=step)


def _validation_key(metrics: Mapping[str, Any]) -> tuple[int, bool]:
    """Return the step of a validated checkpoint, and True if its validation failed."""
    return int(metrics[VALIDATED_STEP]), VALIDATION_ERROR in metrics


def check_tracking(config: Config) -> None:
    """Check that the configured SwanLab mode is installed.

    Raises:
        UserError: SwanLab's board, which mode `local` needs, is not installed.
    """
    is_local = config.train.use_swanlab and config.train.swanlab_mode == "local"
    if is_local and importlib.util.find_spec("swanboard") is None:
        raise UserError(
            "train.swanlab_mode=local needs SwanLab's board, which is not installed. Run "
            "pip install 'swanlab[dashboard]', or set train.swanlab_mode=offline."
        )


def swanlab_mode(config: Config) -> str:
    """Return the configured SwanLab mode, or "offline" if it is "online" without a login."""
    import swanlab

    mode = config.train.swanlab_mode
    return "offline" if mode == "online" and swanlab.Settings().api_key is None else mode


def describe_tracking(config: Config) -> str:
    """Return a line such as "SwanLab: offline"."""
    if not config.train.use_swanlab:
        return "SwanLab: off"
    mode = swanlab_mode(config)
    reason = "" if mode == config.train.swanlab_mode else " (not logged in; run `swanlab login`)"
    return f"SwanLab: {mode}{reason}"


def _start_swanlab(run_dir: RunDir, config: Config) -> Any:
    """Start or resume the SwanLab run. If SwanLab cannot be reached, the run is offline."""
    import swanlab

    run_dir.swanlab_dir.mkdir(parents=True, exist_ok=True)
    init = functools.partial(
        swanlab.init,
        project=config.train.swanlab_project,
        name=run_dir.name,
        config=config_to_dict(config),
        log_dir=str(run_dir.swanlab_dir),
    )
    mode = swanlab_mode(config)
    if mode != "online":
        return init(mode=mode)
    try:
        _check_reachable(swanlab.Settings().api_host)  # SwanLab itself would try for minutes
        return init(mode=mode, id=run_dir.swanlab_run_id(), resume="allow")
    except Exception as error:  # any failure, usually of the network: training continues
        reason = f"{type(error).__name__}: {error}"
        log.warning("SwanLab cannot start online, so this launch is logged offline: %s", reason)
        return init(mode="offline", reinit=True)


def _check_reachable(url: str) -> None:
    """Check that a server answers, whatever the answer is.

    Raises:
        OSError: it does not.
    """
    with suppress(HTTPError):
        open_url(url).close()
