"""Checkpoint folders without their weights: file names, manifest, metrics, upload, deletion.

`training/checkpoint.py` explains the files and writes them.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imf_ray.aliases import METRICS, rename_keys
from imf_ray.errors import StorageError, UserError
from imf_ray.files import parse_json, retrying, write_atomically
from imf_ray.storage import AnyPath, delete, is_transient, upload

PREFIX, PARTIAL_PREFIX = "checkpoint_", ".partial_"
CHECKPOINT_GLOB = f"{PREFIX}[0-9]*"  # does not match Ray's checkpoint_manager_snapshot.json
WEIGHTS_FILE, EMA_WEIGHTS_FILE = "model.safetensors", "model_ema.safetensors"
CONFIG_FILE, MANIFEST_FILE = "config.yaml", "manifest.json"
TRAIN_STATE_FILE, VALIDATION_FILE = "trainer_state.pt", "validation.json"
DIGEST_KEY = "digest"
"""Key of a manifest: SHA-256 digest of the manifest without this key."""
COPY_AGAIN = "Copy the whole folder again, or use another checkpoint."
"""Way out of a damaged checkpoint, for messages."""
SUCCESS_RATE = "rollout/success_rate"
"""Metric: success rate of the rollouts of a validation."""
VALIDATED_STEP = "validated_step"
"""Metric: step of the checkpoint that was validated."""
VALIDATION_ERROR = "validation_error"
"""Metric: reason why the validation of a checkpoint failed."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint on disk."""

    path: Path
    metrics: Mapping[str, Any]
    """Step and training metrics, and validation metrics if the checkpoint was validated."""

    @property
    def step(self) -> int:
        """Number of updates before the checkpoint was saved."""
        return int(self.metrics["step"])

    @property
    def has_validation(self) -> bool:
        """True if the checkpoint's validation has ended, successfully or not."""
        return (self.path / VALIDATION_FILE).is_file()

    @property
    def validation_succeeded(self) -> bool:
        """True if the checkpoint's validation has ended without an error."""
        return self.has_validation and VALIDATION_ERROR not in self.metrics


def checkpoint_rank_key(metrics: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return a sort key of a checkpoint's metrics; the best checkpoint sorts first.

    Checkpoints are compared by success rate, then by action error, then by step (later is better).
    """
    return (
        -metrics.get(SUCCESS_RATE, -1.0),
        metrics.get("action_error", float("inf")),
        -metrics["step"],
    )


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint after `step` updates."""
    return f"{PREFIX}{step:08d}"


def checkpoint_step(checkpoint: AnyPath) -> int:
    """Return the step in a checkpoint folder's name."""
    return int(checkpoint.name.removeprefix(PREFIX))


def read_checkpoint(path: str | Path, *patterns: str) -> SavedCheckpoint:
    """Read a checkpoint folder and verify its files against its manifest.

    Args:
        patterns: glob patterns; only files whose name matches one are verified. Without patterns,
            all files are.

    Raises:
        UserError: the folder has no manifest, or a file does not match the manifest.
        StorageError: a disk or network file system failed; a later call may succeed.
    """
    path = Path(path)
    try:
        content = (path / MANIFEST_FILE).read_bytes()
        if not content.strip(b"\0 \n"):  # after a crash of the machine, or of a copy
            raise UserError(
                f"{path} is not a valid checkpoint: {MANIFEST_FILE} is empty. {COPY_AGAIN}"
            )
        manifest = json.loads(content)
        digest = manifest.pop(DIGEST_KEY, None)  # earlier versions wrote none
        if digest is not None and digest != manifest_digest(manifest):
            raise UserError(
                f"{path} is not a valid checkpoint: {MANIFEST_FILE} was changed. {COPY_AGAIN}"
            )
        for name, digest in manifest["files"].items():
            file = path / name
            is_verified = not patterns or any(file.match(pattern) for pattern in patterns)
            if is_verified and file_digest(file) != digest:
                raise UserError(
                    f"{path} is not a valid checkpoint: {name} was changed or is damaged. "
                    f"{COPY_AGAIN}"
                )
        return SavedCheckpoint(path, _metrics(path, manifest))
    except FileNotFoundError as error:
        name = Path(error.filename).name if error.filename else error
        raise UserError(
            f"{path} is not a valid checkpoint: {name} is missing. {COPY_AGAIN}"
        ) from error
    except OSError as error:
        if is_transient(error):
            raise StorageError(f"{path} cannot be read: {error}") from error
        raise UserError(f"{path} is not a valid checkpoint: {error}. {COPY_AGAIN}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} is not a valid checkpoint: {MANIFEST_FILE} is damaged "
            f"({type(error).__name__}: {error}). {COPY_AGAIN}"
        ) from error


def read_metrics(path: AnyPath) -> dict[str, Any] | None:
    """Return a checkpoint's metrics without verifying its files; None if they are not readable."""
    try:
        return _metrics(path, json.loads((path / MANIFEST_FILE).read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _metrics(path: AnyPath, manifest: Mapping[str, Any]) -> dict[str, Any]:
    # The first version wrote the step next to the files.
    metrics = dict(manifest["metrics"] if "metrics" in manifest else {"step": manifest["step"]})
    validation = path / VALIDATION_FILE
    if validation.is_file():
        try:
            metrics |= parse_json(validation.read_bytes(), dict, validation, "It will be repeated.")
        except UserError as error:  # counts as a failed validation; the weights are not concerned
            metrics[VALIDATION_ERROR] = str(error)
    return rename_keys(metrics, METRICS)


def upload_checkpoint(checkpoint: Path) -> None:
    """Upload a checkpoint, manifest last, so that a partial upload is never valid.

    Raises:
        StorageError: the checkpoint cannot be uploaded.
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
    """Delete the result of a failed validation so that it is run again.

    The result stays in the run's `validations.jsonl`.

    Returns:
        The checkpoint without the result.

    Raises:
        StorageError: the result cannot be deleted.
    """
    delete(checkpoint.path / VALIDATION_FILE)
    return read_checkpoint(checkpoint.path)


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Return the digest of a manifest without its `DIGEST_KEY`."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 digest of a file."""
    status = path.stat()
    return _cached_digest(path, status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=256)
def _cached_digest(path: Path, *_version: int) -> str:
    """Hash each version of a file once: every pruning verifies all checkpoints of a run."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
