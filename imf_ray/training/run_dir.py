"""The folder of one training run: its files, their synchronization, retries and errors."""

from __future__ import annotations

import functools
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from imf_ray.checkpoint_dir import (
    CHECKPOINT_GLOB,
    CONFIG_FILE,
    MANIFEST_FILE,
    PARTIAL_PREFIX,
    VALIDATED_STEP,
    VALIDATION_FILE,
    SavedCheckpoint,
    checkpoint_name,
    checkpoint_rank_key,
    checkpoint_step,
    delete_checkpoint,
    read_checkpoint,
    upload_checkpoint,
    write_validation,
)
from imf_ray.data.episodes import EpisodeRef
from imf_ray.errors import StorageError, UserError
from imf_ray.files import (
    RetryingJsonlWriter,
    append_line,
    parse_json,
    read_json_lines,
    retry_io,
    retrying,
    write_atomically,
    write_figure,
    write_if_changed,
)
from imf_ray.folders import DATA_MANIFEST_FILE, METRICS_FILE
from imf_ray.storage import (
    AnyPath,
    authoritative_path,
    delete,
    download,
    exists,
    read_text_or_none,
    remote_path,
    storage_errors,
    upload,
)
from imf_ray.training.run_records import (
    DataManifest,
    InitRecord,
    WorkerRecord,
    parse_metrics,
)
from imf_ray.training.stoppable_dir import StoppableDir
from imf_ray.yaml_text import parse_file

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

    from imf_ray.agents.base import VLAAgent
    from imf_ray.schema import Config, DataConfig

DEPTH_WEIGHTS_FILE = "depth_weights.png"
VALIDATIONS_FILE, VIDEOS_DIR = "validations.jsonl", "videos"
WORKERS_DIR, WORKERS_LOST_FILE = "workers", "lost"
SWANLAB_DIR, SWANLAB_RUN_ID_FILE, TENSORBOARD_DIR = "swanlab", "run_id", "tensorboard"
TRIAL_FILE, INIT_FILE = "trial.json", "initial_weights.json"
RAY_SNAPSHOT_FILE = "checkpoint_manager_snapshot.json"
T = TypeVar("T")
log = logging.getLogger(__name__)


class RunDir(StoppableDir):
    """The folder of one run. No other class knows its file names.

        config.yaml              resolved configuration of the run
        data.json                episodes for training and validation, number of virtual shards
        initial_weights.json     policy whose weights the run started with (`InitRecord`)
        checkpoint_00001000/     state after 1000 updates, see `training/checkpoint.py`
        .partial_00001000/       a checkpoint that is being written; it is never uploaded
        metrics.jsonl            one line per log entry: training metrics, validations, restarts
        validations.jsonl        one line per validation, also of checkpoints deleted since
        videos/                  a video of the first episode of each validation
        evaluations/             episode records, see `rollout/record_store.py`
        workers/rank_0.json      process of rank 0 (`WorkerRecord`)
        workers/lost             exists once the workers have died
        .claim, stop_requested   see `StoppableDir`
        samples_rank_0.jsonl     sample ids of each update of rank 0 (`train.log_sample_ids`)
        depth_weights.png        attention residuals (`train.diagnostics_freq`)
        swanlab/                 SwanLab's log; `run_id` names the run at SwanLab
        tensorboard/             TensorBoard's log (`train.tensorboard`)
        trial.json               result of the trial, if the run belongs to a sweep
        launches.jsonl           starts and resumes of `imf-ray train`, see `imf_ray.launches`
        report.html              the run as one page, see `pages/report_file.py`
        checkpoint_manager_snapshot.json    Ray Train's own list of checkpoints

    Methods that write, upload or download retry by `files.retry_io`. If the last retry fails, they
    raise `StorageError`. Methods marked "not retried" raise at once: they are polled, or their
    caller cannot wait.
    """

    @property
    def exists(self) -> bool:
        """True if this is the folder of a run."""
        return self.config_file.is_file()

    @property
    def config_file(self) -> Path:
        """The file with the resolved configuration."""
        return self.path / CONFIG_FILE

    @property
    def trial_file(self) -> Path:
        """The file with the trial's result, see `sweep/trial_record.py`."""
        return self.path / TRIAL_FILE

    @property
    def swanlab_dir(self) -> Path:
        """SwanLab's log folder."""
        return self.path / SWANLAB_DIR

    @property
    def tensorboard_dir(self) -> Path:
        """TensorBoard's log folder."""
        return self.path / TENSORBOARD_DIR

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint after `step` updates."""
        return self.path / checkpoint_name(step)

    # Synchronization

    @retrying
    def download(self) -> None:
        """Mirror the remote run into the local copy; do nothing for a local run.

        Local checkpoints without a remote manifest are deleted; other local files stay. Do not
        call while a checkpoint is being written.
        """
        remote = remote_path(self.path)
        if remote is None:
            return
        download(self.path, f"{CHECKPOINT_GLOB}/*", "*.jsonl", "*.yaml", DATA_MANIFEST_FILE)
        for path in self.path.glob(CHECKPOINT_GLOB):
            if not exists(remote / path.name / MANIFEST_FILE):
                shutil.rmtree(path)
                continue
            try:
                read_checkpoint(path)
            except UserError:  # an incomplete copy from an earlier attempt on this machine
                shutil.rmtree(path)
                download(path)

    @retrying
    def download_validations(self) -> None:
        """Download the validation results that other machines wrote."""
        download(self.path, f"*/{VALIDATION_FILE}", VALIDATIONS_FILE)

    # Configuration and data

    def read_config(self) -> dict[str, Any]:
        """Return the stored configuration, see `parse_file`. Old runs may lack options.

        Raises:
            UserError: the file is damaged.
        """
        return parse_file(self.config_file.read_bytes(), str(self.config_file))

    @retrying
    def write_config(self, yaml: str) -> None:
        """Write the resolved configuration, unless the file already contains it."""
        write_if_changed(self.config_file, yaml)

    def read_data_manifest(self) -> DataManifest | None:
        """Return the stored `DataManifest`, or None if there is none."""
        way_out = (
            "Restore it from a copy. Without one, delete it. Then nothing checks that the episodes "
            "are still those of the run."
        )
        return _read_if_present(self.path / DATA_MANIFEST_FILE, DataManifest.from_json, way_out)

    @retrying
    def write_data_manifest(self, manifest: DataManifest) -> None:
        """Write a `DataManifest`, unless the file already contains it."""
        write_if_changed(self.path / DATA_MANIFEST_FILE, json.dumps(manifest.to_json()))

    def read_init_record(self) -> InitRecord | None:
        """Return the `InitRecord`, or None if the run did not start with a policy's weights."""
        download(self.path / INIT_FILE)
        way_out = "Restore it from a copy, or choose another run_name."
        return _read_if_present(self.path / INIT_FILE, lambda row: InitRecord(**row), way_out)

    @retrying
    def write_init_record(self, record: InitRecord) -> None:
        """Write the `InitRecord`, unless the file already contains it."""
        write_if_changed(self.path / INIT_FILE, json.dumps(asdict(record)))

    def find_val_episodes(self, data: DataConfig) -> list[EpisodeRef]:
        """Return the episodes held out for validation, also if their data set was moved to `data`.

        Raises:
            UserError: an episode is missing or has changed.
            StorageError: the storage cannot be read; not retried.
        """
        from imf_ray.data.index import locate_episodes  # takes seconds

        download(self.path / DATA_MANIFEST_FILE)
        manifest = self.read_data_manifest()
        episodes = [] if manifest is None else manifest.val_episodes
        return locate_episodes(episodes, data.dataset_dir, data.format, data.features)

    # Checkpoints

    def list_checkpoints(self) -> list[SavedCheckpoint]:
        """Return the valid checkpoints, oldest first. Others are skipped with a warning."""
        return list(_iter_valid(sorted(self.path.glob(CHECKPOINT_GLOB))))

    def newest_checkpoint(self) -> SavedCheckpoint | None:
        """Return the newest valid checkpoint, or None. Others are skipped with a warning."""
        paths = sorted(self.path.glob(CHECKPOINT_GLOB), reverse=True)
        return next(_iter_valid(paths), None)

    def best_checkpoint(self) -> SavedCheckpoint:
        """Return the valid checkpoint that ranks first by `checkpoint_rank_key`.

        Raises:
            UserError: the run has no valid checkpoint.
        """
        saved = self.list_checkpoints()
        if not saved:
            raise UserError(f"{self} has no valid checkpoint.")
        return min(saved, key=lambda checkpoint: checkpoint_rank_key(checkpoint.metrics))

    def newest_step(self) -> int | None:
        """Return the step of the newest finished checkpoint without verifying it, or None."""
        manifests = self.path.glob(f"{CHECKPOINT_GLOB}/{MANIFEST_FILE}")
        return max((checkpoint_step(manifest.parent) for manifest in manifests), default=None)

    def count_checkpoints_after(self, step: int) -> int:
        """Return the number of checkpoint folders, valid or not, with more than `step` updates."""
        return sum(checkpoint_step(path) > step for path in self.path.glob(CHECKPOINT_GLOB))

    def save_checkpoint(
        self,
        step: int,
        metrics: Mapping[str, float],
        agent: VLAAgent,
        config: Config,
        ema: Mapping[str, torch.Tensor] | None,
        train_state: Mapping[str, Any],
    ) -> SavedCheckpoint:
        """Write and upload the checkpoint after `step` updates."""
        from imf_ray.training.checkpoint import save_checkpoint  # imports torch

        saved = retry_io(save_checkpoint, self.path, step, metrics, agent, config, ema, train_state)
        retry_io(upload_checkpoint, saved.path)
        return saved

    def delete_partial_checkpoints(self) -> None:
        """Delete unfinished checkpoints of killed writers; only the next writer may call this."""
        for partial in self.path.glob(f"{PARTIAL_PREFIX}*"):
            shutil.rmtree(partial, ignore_errors=True)

    def prune_checkpoints(self, keep_last_k: int, pending: Callable[[int], bool]) -> None:
        """Delete all valid checkpoints except the newest `keep_last_k`, the best and pending ones.

        Args:
            pending: returns True for each step whose checkpoint must be validated before deletion.

        Raises:
            StorageError: a checkpoint cannot be deleted; not retried.
        """
        saved = self.list_checkpoints()
        by_rank = sorted(saved, key=lambda checkpoint: checkpoint_rank_key(checkpoint.metrics))
        kept_steps = {checkpoint.step for checkpoint in [*saved[-keep_last_k:], *by_rank[:1]]}
        for checkpoint in saved:
            awaits_validation = pending(checkpoint.step) and not checkpoint.has_validation
            if checkpoint.step not in kept_steps and not awaits_validation:
                delete_checkpoint(checkpoint.path)

    @retrying
    def delete_ray_snapshot(self) -> None:
        """Delete Ray Train's own list of checkpoints."""
        delete(self.path / RAY_SNAPSHOT_FILE)

    # Metrics and validations

    def open_metrics(self) -> RetryingJsonlWriter:
        """Open `metrics.jsonl` for appending."""
        return retry_io(RetryingJsonlWriter, self.path / METRICS_FILE)

    def open_sample_log(self, rank: int) -> RetryingJsonlWriter:
        """Open the log of a rank's sample ids for appending."""
        return retry_io(RetryingJsonlWriter, self.path / f"samples_rank_{rank}.jsonl")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the valid lines of `metrics.jsonl`, or an empty list if the file is missing."""
        return read_json_lines(self.path / METRICS_FILE, parse_metrics).rows

    def read_new_metrics(self, offset: int) -> tuple[list[dict[str, Any]], int]:
        """Download `metrics.jsonl` and return its lines after a byte offset.

        Returns:
            The complete lines, and the byte offset of their end.

        Raises:
            StorageError: the file cannot be read; not retried.
        """
        path = self.path / METRICS_FILE
        download(path)
        lines = read_json_lines(path, parse_metrics, offset)
        return lines.rows, lines.end

    @retrying
    def write_validation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Add the result of a validation to the run and to the checkpoint, in this order.

        The checkpoint's file marks the validation as done. If the process dies before that, the
        checkpoint is validated again.
        """
        download(self.path / VALIDATIONS_FILE)
        append_line(self.path / VALIDATIONS_FILE, json.dumps({"step": step, **metrics}))
        write_validation(self.checkpoint(step), metrics)

    @retrying
    def read_validations(self) -> list[dict[str, Any]]:
        """Return the metrics of every validation so far, with the checkpoint's `VALIDATED_STEP`."""
        rows = read_json_lines(self.path / VALIDATIONS_FILE, parse_metrics).rows
        return [{VALIDATED_STEP: row.pop("step"), **row} for row in rows]

    @retrying
    def write_validation_video(self, step: int, content: bytes) -> None:
        """Write the video of a checkpoint's validation."""
        write_atomically(self._video_file(step), content)

    @retrying
    def read_validation_video(self, step: int) -> bytes | None:
        """Return the video of a checkpoint's validation, or None; download it if necessary."""
        path = self._video_file(step)
        download(path)
        return path.read_bytes() if path.is_file() else None

    def _video_file(self, step: int) -> Path:
        return self.path / VIDEOS_DIR / f"{checkpoint_name(step)}.mp4"

    @retrying
    def write_depth_weights(self, figure: Figure) -> None:
        """Write the figure of the attention residuals."""
        write_figure(self.path / DEPTH_WEIGHTS_FILE, figure)

    @retrying
    def read_swanlab_run_id(self) -> str | None:
        """Return the id of the run at SwanLab, or None if it has none yet."""
        path = self.swanlab_dir / SWANLAB_RUN_ID_FILE
        download(path)
        return path.read_text() if path.is_file() else None

    @retrying
    def write_swanlab_run_id(self, run_id: str) -> None:
        """Write the id of the run at SwanLab."""
        write_atomically(self.swanlab_dir / SWANLAB_RUN_ID_FILE, run_id)

    @retrying
    def upload_charts(self) -> None:
        """Upload the log folders of SwanLab and TensorBoard."""
        upload(self.swanlab_dir)
        upload(self.tensorboard_dir)

    # Workers

    @retrying
    def write_worker_record(self, record: WorkerRecord) -> None:
        """Write the record of one rank."""
        path = self.path / WORKERS_DIR / f"rank_{record.rank}.json"
        write_atomically(path, json.dumps(asdict(record)))

    def read_workers(self) -> list[dict[str, Any]]:
        """Return the `WorkerRecord`s as plain dictionaries. Damaged ones are skipped.

        Raises:
            StorageError: the records cannot be read; not retried.
        """
        folder = authoritative_path(self.path / WORKERS_DIR)
        with storage_errors(folder, "listed"):
            files: list[AnyPath] = [*folder.glob("*.json")]
        records = []
        for file in sorted(files, key=str):
            text = read_text_or_none(file)
            if text is not None:  # None: just deleted
                try:
                    records.append(parse_json(text, dict, file, "The next start replaces it."))
                except UserError as error:
                    _warn_once(f"Skipped: {error}")
        return records

    def delete_workers(self) -> None:
        """Delete the worker records; not retried."""
        delete(self.path / WORKERS_DIR)

    def mark_workers_lost(self) -> None:
        """Mark the workers as dead, so that a graceful stop does not wait for their checkpoint.

        A failure is logged and neither raised nor retried.
        """
        try:
            write_atomically(self.path / WORKERS_DIR / WORKERS_LOST_FILE, "")
        except StorageError as error:  # a second Ctrl-C ends the wait
            log.warning("The workers cannot be marked as lost: %s", error)

    def has_live_workers(self) -> bool:
        """Return True if there are workers that may still write a checkpoint; not retried."""
        lost = authoritative_path(self.path / WORKERS_DIR) / WORKERS_LOST_FILE
        return bool(self.read_workers()) and not exists(lost)

    def safe_to_kill(self, max_steps: int) -> bool:
        """Return True if killing the run loses no update, after a request to stop; not retried."""
        if not self.stop_requested(retry=False) or not self.has_live_workers():
            return True
        # A run that has saved its last checkpoint only waits for validations.
        return exists(authoritative_path(self.checkpoint(max_steps)) / MANIFEST_FILE)


def _read_if_present(path: Path, parse: Callable[[Any], T], way_out: str) -> T | None:
    return parse_json(path.read_bytes(), parse, path, way_out) if path.is_file() else None


def _iter_valid(paths: Iterable[Path]) -> Iterator[SavedCheckpoint]:
    for path in paths:
        try:
            yield retry_io(read_checkpoint, path)
        except UserError as error:
            _warn_once(f"Skipped: {error}")


@functools.cache
def _warn_once(message: str) -> None:
    """Log a warning once per process: every listing finds the same invalid checkpoints."""
    log.warning(message)
