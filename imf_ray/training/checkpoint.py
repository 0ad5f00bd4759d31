"""Checkpoints of a run: an agent's folder, the trainer's state, and a manifest that seals them.

A checkpoint is written under a temporary name, synced and renamed; its manifest holds the digest
of every file. A folder without a matching manifest is not a checkpoint, so that one rule finds the
newest valid one wherever a run goes on. What validation found out is added to the folder later, as
`validation.json`, and to the run's `validations.jsonl`, which outlives the checkpoint.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import pickle
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from imf_ray.agents.base import VLAAgent
from imf_ray.agents.pretrained import save_agent, save_inference_policy
from imf_ray.errors import StorageError, UserError
from imf_ray.files import (
    append_line,
    atomic_rename,
    fsync_path,
    read_lines,
    retry_io,
    write_atomically,
)
from imf_ray.rollout.records import SUCCESS_RATE
from imf_ray.schema import Config, TrainConfig
from imf_ray.storage import delete, download, exists, is_transient, remote_path, upload

PREFIX, PARTIAL_PREFIX = "checkpoint_", ".partial_"
CHECKPOINT_GLOB = f"{PREFIX}[0-9]*"  # Ray keeps a checkpoint_manager_snapshot.json beside them
MANIFEST, TRAINER_STATE = "manifest.json", "trainer_state.pt"
DIGEST = "digest"
"""In a manifest: of everything else in it."""
VALIDATION, VALIDATIONS = "validation.json", "validations.jsonl"
VIDEOS, DATA_MANIFEST_FILE = "videos", "data.json"
VALIDATED_STEP = "validated_step"
"""Among metrics: the step of the checkpoint that those of validation are of."""
VALIDATION_ERROR = "validation_error"
"""Among metrics: why a checkpoint could not be judged."""
DISK_FULL_PATTERN = re.compile(
    "PytorchStreamWriter|unexpected pos|No space left|os error|I/O error"
)
"""What torch and safetensors, which raise errors of their own, say of a full disk."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint on disk."""

    path: Path
    metrics: Mapping[str, Any]
    """Its step, training metrics, and those of its validation if there was one."""

    @property
    def step(self) -> int:
        """Updates behind it."""
        return int(self.metrics["step"])

    @property
    def validated(self) -> bool:
        """Whether a judgement was tried, with success or not."""
        return (self.path / VALIDATION).is_file()

    @property
    def judged(self) -> bool:
        """Whether it was judged, and that did not fail."""
        return self.validated and VALIDATION_ERROR not in self.metrics


@dataclass(frozen=True)
class CheckpointSchedule:
    """After which steps a checkpoint is written, and which of them are validated."""

    train: TrainConfig
    steps_per_epoch: int

    def due(self, step: int) -> bool:
        """Whether a checkpoint is written after `step` updates."""
        saved = step % self.train.save_freq == 0 or step == self.train.max_steps
        return saved or self._ends_validation_period(step)

    def validated(self, step: int) -> bool:
        """Whether the checkpoint after `step` updates, if there is one, is validated."""
        if self.train.rollout_validate_on_checkpoint and self.due(step):
            return True
        ends = self.train.rollout_val_freq_epochs > 0 and step == self.train.max_steps
        return ends or self._ends_validation_period(step)

    def _ends_validation_period(self, step: int) -> bool:
        period = self.train.rollout_val_freq_epochs * self.steps_per_epoch
        return period > 0 and step % period == 0


def checkpoint_rank_key(metrics: Mapping[str, Any]) -> tuple[float, float, float]:
    """Sort key of a checkpoint's metrics, best first: success, held-out action error, step."""
    return (
        -metrics.get(SUCCESS_RATE, -1.0),
        metrics.get("action_error", float("inf")),
        -metrics["step"],
    )


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` updates."""
    return run_dir / f"{PREFIX}{step:08d}"


def save_checkpoint(
    run_dir: Path,
    step: int,
    metrics: Mapping[str, float],
    agent: VLAAgent,
    config: Config,
    ema: Mapping[str, torch.Tensor] | None,
    trainer_state: Mapping[str, Any],
) -> SavedCheckpoint:
    """Write the checkpoint after `step` updates into the run's folder: complete or absent.

    Raises:
        StorageError: the disk is full or the folder cannot be written; nothing that counts is left.
    """
    final = checkpoint_path(run_dir, step)
    partial = run_dir / f"{PARTIAL_PREFIX}{step:08d}"
    metrics = {"step": step, **metrics}

    def write(folder: Path) -> None:
        save_agent(folder, agent, config, ema)
        torch.save(dict(trainer_state), folder / TRAINER_STATE)

    _write_with_manifest(partial, final, metrics, write)
    return SavedCheckpoint(final, metrics)


def delete_partial_checkpoints(run_dir: Path) -> None:
    """Delete what was left of checkpoints whose writer was killed; to be called by the next one."""
    for partial in run_dir.glob(f"{PARTIAL_PREFIX}*"):
        shutil.rmtree(partial, ignore_errors=True)


def upload_checkpoint(checkpoint: Path) -> None:
    """Have a checkpoint where its run is kept; there, too, it is complete or absent.

    Raises:
        StorageError: it cannot be written there.
    """
    upload(checkpoint, last=MANIFEST)


def export_policy(checkpoint: Path, folder: Path) -> SavedCheckpoint:
    """Write a checkpoint that holds what executes its policy and nothing of its training.

    Raises:
        UserError: it is not a valid checkpoint, the folder exists, or it cannot be written.
    """
    saved = read_checkpoint(checkpoint)
    if folder.exists():
        raise UserError(f"{folder} exists: remove it, or name another folder.")
    metrics = {"step": saved.step}
    _write_with_manifest(
        folder.with_name(f"{PARTIAL_PREFIX}{folder.name}"),
        folder,
        metrics,
        lambda partial: save_inference_policy(partial, checkpoint),
    )
    upload_checkpoint(folder)
    return SavedCheckpoint(folder, metrics)


def _write_with_manifest(
    partial: Path, final: Path, metrics: Mapping[str, Any], write: Callable[[Path], None]
) -> None:
    """Let `write` fill a folder, seal it with its manifest and give it its name."""
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        files = {path.name: _digest_of(path) for path in sorted(partial.iterdir())}
        manifest: dict[str, Any] = {"metrics": dict(metrics), "files": files}
        manifest[DIGEST] = _digest_of_manifest(manifest)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in partial.iterdir():
            fsync_path(path)
        if final.exists():  # an invalid one of an earlier attempt: valid ones are resumed from
            delete_checkpoint(final)
        atomic_rename(partial, final)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not isinstance(error, OSError) and not DISK_FULL_PATTERN.search(str(error)):
            raise
        free = shutil.disk_usage(final.parent).free / 2**20
        raise StorageError(
            f"The checkpoint {final} cannot be written: {error}. {free:.0f} MiB are free there; "
            "older checkpoints are as they were."
        ) from error


def list_checkpoints(run_dir: Path) -> list[SavedCheckpoint]:
    """The valid checkpoints of a run, oldest first; bad ones are passed over with a warning."""
    return list(_iter_valid(sorted(run_dir.glob(CHECKPOINT_GLOB))))


def newest_checkpoint(run_dir: Path) -> SavedCheckpoint | None:
    """The valid checkpoint with most steps; bad ones are passed over with a warning."""
    return next(_iter_valid(sorted(run_dir.glob(CHECKPOINT_GLOB), reverse=True)), None)


def newest_step(run_dir: Path) -> int | None:
    """Updates behind the newest checkpoint that was finished; whether it is whole still, a resume
    sees."""
    finished = (manifest.parent for manifest in run_dir.glob(f"{CHECKPOINT_GLOB}/{MANIFEST}"))
    return max(map(checkpoint_step, finished), default=None)


def best_checkpoint(run_dir: Path) -> SavedCheckpoint:
    """The valid checkpoint of a run that ranks first.

    Raises:
        UserError: it has none.
    """
    saved = list_checkpoints(run_dir)
    if not saved:
        raise UserError(f"{run_dir} has no valid checkpoint.")
    return min(saved, key=lambda checkpoint: checkpoint_rank_key(checkpoint.metrics))


def _iter_valid(paths: Iterable[Path]) -> Iterator[SavedCheckpoint]:
    for path in paths:
        try:
            yield retry_io(functools.partial(read_checkpoint, path))
        except UserError as error:  # though it was waited for, if it may be the disk
            _warn_once(f"Passed over: {error}")


@functools.cache
def _warn_once(message: str) -> None:
    """Every look at a run's checkpoints meets with a bad one again."""
    log.warning(message)


def clear_validation(checkpoint: SavedCheckpoint) -> SavedCheckpoint:
    """Have a judgement that failed waited for again; the run's `validations.jsonl` remembers it.

    Raises:
        StorageError: it cannot be removed.
    """
    delete(checkpoint.path / VALIDATION)
    return read_checkpoint(checkpoint.path)


def prune_checkpoints(run_dir: Path, keep_last_k: int, pending: Callable[[int], bool]) -> None:
    """Delete all valid checkpoints but the newest `keep_last_k`, the best, and pending ones.

    Args:
        pending: whether the checkpoint of a step still waits for its validation.
    """
    saved = list_checkpoints(run_dir)
    kept = {checkpoint.step for checkpoint in saved[-keep_last_k:]}
    kept |= {
        checkpoint.step
        for checkpoint in sorted(saved, key=lambda c: checkpoint_rank_key(c.metrics))[:1]
    }
    for checkpoint in saved:
        waits = pending(checkpoint.step) and not checkpoint.validated
        if checkpoint.step not in kept and not waits:
            delete_checkpoint(checkpoint.path)


def delete_checkpoint(path: Path) -> None:
    """Delete a checkpoint, its manifest first: what is left of it then counts nowhere."""
    delete(path / MANIFEST)
    delete(path)


def download_run(run_dir: Path) -> None:
    """Have in the working copy of a URL what the run has there: its checkpoints, and no others.

    One that was not copied to the end was never committed, and is forgotten; logs stay. To be
    called where nobody writes checkpoints.
    """
    kept = remote_path(run_dir)
    if kept is None:
        return
    download(run_dir, f"{CHECKPOINT_GLOB}/*", "*.jsonl", "*.yaml", DATA_MANIFEST_FILE)
    for path in run_dir.glob(CHECKPOINT_GLOB):
        if not exists(kept / path.name / MANIFEST):
            shutil.rmtree(path)
            continue
        try:
            read_checkpoint(path)
        except UserError:  # of an earlier attempt here, perhaps
            shutil.rmtree(path)
            download(path)


def write_validation(checkpoint: Path, metrics: Mapping[str, Any]) -> None:
    """Attach what validation found out to a checkpoint and to its run."""
    download(checkpoint.parent / VALIDATIONS)
    line = json.dumps({"step": checkpoint_step(checkpoint), **metrics})
    append_line(checkpoint.parent / VALIDATIONS, line)
    # Last, since it says that the checkpoint is judged: cut off before, it is judged again.
    write_atomically(checkpoint / VALIDATION, json.dumps(metrics))


def pull_validations(run_dir: Path) -> None:
    """Have what validation found out on other machines in the working copy of a URL."""
    download(run_dir, f"*/{VALIDATION}", VALIDATIONS)


def validation_video(run_dir: Path, step: int) -> Path:
    """Where the video of the validation of a step's checkpoint is, if one was made."""
    return run_dir / VIDEOS / f"{PREFIX}{step:08d}.mp4"


def read_validations(run_dir: Path) -> list[dict[str, Any]]:
    """The metrics of every validation of a run so far, each with its `VALIDATED_STEP`."""
    found = [json.loads(line) for line in read_lines(run_dir / VALIDATIONS)]
    return [{VALIDATED_STEP: metrics.pop("step"), **metrics} for metrics in found]


def checkpoint_step(checkpoint: Path) -> int:
    """The step that a checkpoint folder's name tells."""
    return int(checkpoint.name.removeprefix(PREFIX))


def read_checkpoint(path: Path) -> SavedCheckpoint:
    """Verify a checkpoint folder.

    Raises:
        UserError: it has no manifest, or a file does not match it.
        StorageError: a disk or shared folder does not give it; it may later.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        digest = manifest.pop(DIGEST, None)  # earlier versions wrote none
        if digest is not None and digest != _digest_of_manifest(manifest):
            raise UserError(f"{path} is not a valid checkpoint: {MANIFEST} was changed.")
        for name, digest in manifest["files"].items():
            if _digest_of(path / name) != digest:
                raise UserError(f"{path} is not a valid checkpoint: {name} was changed.")
        metrics = dict(manifest["metrics"])
        if (path / VALIDATION).is_file():
            metrics |= json.loads((path / VALIDATION).read_text())
        return SavedCheckpoint(path, metrics)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        if isinstance(error, OSError) and is_transient(error):
            raise StorageError(f"{path} cannot be read: {error}") from error
        raise UserError(f"{path} is not a valid checkpoint: {error}.") from error


def load_trainer_state(path: Path, device: str) -> dict[str, Any]:
    """Optimizer, schedule and averaged weights; no code is run by loading them.

    Raises:
        UserError: it holds more than tensors and plain values.
    """
    try:
        return torch.load(path / TRAINER_STATE, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path / TRAINER_STATE} is not loaded: {reason}") from error


def _digest_of_manifest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _digest_of(path: Path) -> str:
    found = path.stat()
    return _digest(path, found.st_size, found.st_mtime_ns, found.st_ino)


@functools.lru_cache(maxsize=256)
def _digest(path: Path, *_: int) -> str:
    """Read once in a process, as long as the file is the same: a run looks at all that it keeps
    with each one that it adds."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
