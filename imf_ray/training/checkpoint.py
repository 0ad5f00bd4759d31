"""One checkpoint folder: weights, configuration, train state and a manifest that seals them.

    model.safetensors, model_ema.safetensors, config.yaml    see `agents/pretrained.py`
    trainer_state.pt     optimizer, schedule and data position
    manifest.json        step, training metrics and the SHA-256 digest of every file above
    validation.json      metrics of its validation, added later

A checkpoint is written under a temporary name, synced and renamed. A folder without a matching
manifest is not a checkpoint, so that a resumed run finds the newest valid one by a single rule.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from imf_ray.agents.base import VLAAgent
from imf_ray.agents.pretrained import save_agent, save_inference_policy
from imf_ray.aliases import METRICS, rename_keys
from imf_ray.errors import StorageError, UserError
from imf_ray.files import atomic_rename, fsync_path, retrying, write_atomically
from imf_ray.rollout.records import SUCCESS_RATE
from imf_ray.schema import Config
from imf_ray.storage import delete, is_transient, upload

PREFIX, PARTIAL_PREFIX = "checkpoint_", ".partial_"
CHECKPOINT_GLOB = f"{PREFIX}[0-9]*"  # Ray Train keeps a checkpoint_manager_snapshot.json there
MANIFEST_FILE, TRAIN_STATE_FILE = "manifest.json", "trainer_state.pt"
VALIDATION_FILE = "validation.json"
DIGEST_KEY = "digest"
"""Key of a manifest: digest of all its other content."""
VALIDATED_STEP = "validated_step"
"""Metric: step of the checkpoint that the validation metrics belong to."""
VALIDATION_ERROR = "validation_error"
"""Metric: why the validation of a checkpoint failed."""
DISK_FULL_PATTERN = re.compile(
    "PytorchStreamWriter|unexpected pos|No space left|os error|I/O error"
)
"""Messages of torch and safetensors, which raise their own exceptions when a disk is full."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint on disk."""

    path: Path
    metrics: Mapping[str, Any]
    """Its step, training metrics, and those of its validation if there was one."""

    @property
    def step(self) -> int:
        """Number of updates before the checkpoint."""
        return int(self.metrics["step"])

    @property
    def has_validation(self) -> bool:
        """True if its validation has ended, successfully or not."""
        return (self.path / VALIDATION_FILE).is_file()

    @property
    def validation_succeeded(self) -> bool:
        """True if its validation has ended without an error."""
        return self.has_validation and VALIDATION_ERROR not in self.metrics


def checkpoint_rank_key(metrics: Mapping[str, Any]) -> tuple[float, float, float]:
    """Sort key of a checkpoint's metrics, best first: success, validation action error, step."""
    return (
        -metrics.get(SUCCESS_RATE, -1.0),
        metrics.get("action_error", float("inf")),
        -metrics["step"],
    )


def checkpoint_name(step: int) -> str:
    """The folder name of the checkpoint after `step` updates."""
    return f"{PREFIX}{step:08d}"


def checkpoint_step(checkpoint: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(checkpoint.name.removeprefix(PREFIX))


def save_checkpoint(
    folder: Path,
    step: int,
    metrics: Mapping[str, float],
    agent: VLAAgent,
    config: Config,
    ema: Mapping[str, torch.Tensor] | None,
    train_state: Mapping[str, Any],
) -> SavedCheckpoint:
    """Write the checkpoint after `step` updates into a run's folder: complete or absent.

    Raises:
        StorageError: the disk is full or the folder is not writable; earlier checkpoints stay.
    """
    final = folder / checkpoint_name(step)
    metrics = {"step": step, **metrics}

    def write(partial: Path) -> None:
        save_agent(partial, agent, config, ema)
        torch.save(dict(train_state), partial / TRAIN_STATE_FILE)

    _write_with_manifest(folder / f"{PARTIAL_PREFIX}{step:08d}", final, metrics, write)
    return SavedCheckpoint(final, metrics)


def export_policy(checkpoint: Path, folder: Path) -> SavedCheckpoint:
    """Write a checkpoint that can execute its policy but not resume its training.

    Raises:
        UserError: `checkpoint` is not valid, `folder` exists, or it cannot be written.
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
    """Write a checkpoint folder, add the manifest, and rename the folder.

    Args:
        write: writes the files into the folder that it is given.

    Raises:
        StorageError: see `save_checkpoint`.
    """
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        digests = {file.name: _file_digest(file) for file in sorted(partial.iterdir())}
        manifest: dict[str, Any] = {"metrics": dict(metrics), "files": digests}
        manifest[DIGEST_KEY] = _manifest_digest(manifest)
        (partial / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1))
        for file in partial.iterdir():
            fsync_path(file)
        if final.exists():  # invalid, since a run resumes from valid ones
            delete_checkpoint(final)
        atomic_rename(partial, final)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not isinstance(error, OSError) and not DISK_FULL_PATTERN.search(str(error)):
            raise
        free = shutil.disk_usage(final.parent).free / 2**20
        raise StorageError(
            f"The checkpoint {final} cannot be written: {error}. {free:.0f} MiB are free there; "
            "older checkpoints are unchanged."
        ) from error


def upload_checkpoint(checkpoint: Path) -> None:
    """Upload a checkpoint, manifest last, so that a partial upload is never valid.

    Raises:
        StorageError: it cannot be uploaded.
    """
    upload(checkpoint, upload_last=MANIFEST_FILE)


def delete_checkpoint(checkpoint: Path) -> None:
    """Delete a checkpoint, manifest first, so that a partly deleted one is never valid."""
    delete(checkpoint / MANIFEST_FILE)
    delete(checkpoint)


def write_validation(checkpoint: Path, metrics: Mapping[str, Any]) -> None:
    """Write the result of a checkpoint's validation into its folder."""
    write_atomically(checkpoint / VALIDATION_FILE, json.dumps(metrics))


@retrying
def clear_validation(checkpoint: SavedCheckpoint) -> SavedCheckpoint:
    """Delete the record of a failed validation so that it is run again.

    The run's `validations.jsonl` keeps it.

    Raises:
        StorageError: it cannot be deleted.
    """
    delete(checkpoint.path / VALIDATION_FILE)
    return read_checkpoint(checkpoint.path)


def read_checkpoint(path: Path) -> SavedCheckpoint:
    """Verify a checkpoint folder against its manifest.

    Raises:
        UserError: it has no manifest, or a file does not match it.
        StorageError: a disk or network file system fails; it may recover.
    """
    try:
        manifest = json.loads((path / MANIFEST_FILE).read_text())
        digest = manifest.pop(DIGEST_KEY, None)  # earlier versions wrote none
        if digest is not None and digest != _manifest_digest(manifest):
            raise UserError(f"{path} is not a valid checkpoint: {MANIFEST_FILE} was changed.")
        for name, digest in manifest["files"].items():
            if _file_digest(path / name) != digest:
                raise UserError(f"{path} is not a valid checkpoint: {name} was changed.")
        metrics = dict(manifest["metrics"])
        if (path / VALIDATION_FILE).is_file():
            metrics |= json.loads((path / VALIDATION_FILE).read_text())
        return SavedCheckpoint(path, rename_keys(metrics, METRICS))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        if isinstance(error, OSError) and is_transient(error):
            raise StorageError(f"{path} cannot be read: {error}") from error
        raise UserError(f"{path} is not a valid checkpoint: {error}.") from error


def load_train_state(checkpoint: Path, device: str) -> dict[str, Any]:
    """Load optimizer, schedule and data position with `weights_only`: no pickled code is run.

    Raises:
        UserError: the file holds more than tensors and plain values.
    """
    path = checkpoint / TRAIN_STATE_FILE
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is not loaded: {reason}") from error


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    status = path.stat()
    return _cached_digest(path, status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=256)
def _cached_digest(path: Path, *_version: int) -> str:
    """Hash a file once a process and version: each pruning verifies all checkpoints of a run."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
