"""One checkpoint folder: weights, configuration, train state and a manifest with their digests.

    model.safetensors, model_ema.safetensors, config.yaml    see `agents/pretrained.py`
    trainer_state.pt     optimizer, learning rate schedule and position in the sample plan
    manifest.json        step, training metrics and the SHA-256 digest of every file above
    validation.json      metrics of the checkpoint's validation, added later

A checkpoint is written under a temporary name, synced and renamed. A folder without a matching
manifest is not a checkpoint. A run resumes from the newest folder whose manifest matches.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from imf_ray.agents.base import VLAAgent
from imf_ray.agents.pretrained import make_meta_agent, save_agent, save_inference_policy
from imf_ray.checkpoint_dir import (
    DIGEST_KEY,
    MANIFEST_FILE,
    PARTIAL_PREFIX,
    TRAIN_STATE_FILE,
    SavedCheckpoint,
    checkpoint_name,
    delete_checkpoint,
    file_digest,
    manifest_digest,
    upload_checkpoint,
)
from imf_ray.errors import StorageError, UserError
from imf_ray.files import atomic_rename, fsync_path
from imf_ray.folders import verify_checkpoint
from imf_ray.schema import Config
from imf_ray.storage import existing_folder

ADAM_MOMENTS = 2
"""Number of values that Adam stores for each trained parameter."""
DISK_FULL_PATTERN = re.compile(
    "PytorchStreamWriter|unexpected pos|No space left|os error|I/O error"
)
"""Matches errors of torch and safetensors, which have their own exceptions for a full disk."""


def save_checkpoint(
    folder: Path,
    step: int,
    metrics: Mapping[str, float],
    agent: VLAAgent,
    config: Config,
    ema: Mapping[str, torch.Tensor] | None,
    train_state: Mapping[str, Any],
) -> SavedCheckpoint:
    """Write the checkpoint after `step` updates into a run's folder.

    The checkpoint's folder appears only once it is complete.

    Raises:
        StorageError: the disk is full or the folder is not writable. Earlier checkpoints stay.
    """
    final = folder / checkpoint_name(step)
    metrics = {"step": step, **metrics}

    def write(partial: Path) -> None:
        save_agent(partial, agent, config, ema)
        torch.save(dict(train_state), partial / TRAIN_STATE_FILE)

    _write_with_manifest(folder / f"{PARTIAL_PREFIX}{step:08d}", final, metrics, write)
    return SavedCheckpoint(final, metrics)


def describe_checkpoints(config: Config, num_runs: int = 1) -> str:
    """Return a line with the size of a run's checkpoints and the free disk space.

    Args:
        num_runs: number of runs like this one that write into `storage_path`.
    """
    agent = make_meta_agent(config.agent, config.task.action_space)
    weights = sum(value.numel() * value.element_size() for value in agent.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in agent.parameters() if p.requires_grad)
    each = weights * (2 if config.train.ema else 1) + trained * ADAM_MOMENTS
    kept = config.train.keep_last_k + 1
    runs = "" if num_runs == 1 else f" in each of {num_runs} runs"
    free = shutil.disk_usage(existing_folder(config.storage_path)).free
    return (
        f"Checkpoints: {each / 1e6:.0f} MB each, at most {kept} at a time{runs} "
        f"(train.keep_last_k={config.train.keep_last_k}, and the best); {free / 1e9:.0f} GB free"
    )


def export_policy(checkpoint: str | Path, folder: str | Path) -> SavedCheckpoint:
    """Export a checkpoint to a folder that can run the policy but not resume training.

    Raises:
        UserError: `checkpoint` is not valid, or `folder` exists.
        StorageError: `folder` cannot be written.
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    saved = verify_checkpoint(checkpoint)
    if folder.exists():
        raise UserError(f"{folder} exists. Remove it, or choose another folder.")
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
        write: function that writes all files except the manifest into the given folder.

    Raises:
        StorageError: see `save_checkpoint`.
    """
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        digests = {file.name: file_digest(file) for file in sorted(partial.iterdir())}
        manifest: dict[str, Any] = {"metrics": dict(metrics), "files": digests}
        manifest[DIGEST_KEY] = manifest_digest(manifest)
        (partial / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1))
        for file in partial.iterdir():
            fsync_path(file)
        if final.exists():  # an invalid checkpoint: the run resumed from an earlier one
            delete_checkpoint(final)
        atomic_rename(partial, final)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not isinstance(error, OSError) and not DISK_FULL_PATTERN.search(str(error)):
            raise
        parent = next(folder for folder in final.absolute().parents if folder.is_dir())
        free = shutil.disk_usage(parent).free / 2**20
        raise StorageError(
            f"The checkpoint {final} cannot be written: {error}. {free:.0f} MiB are free in "
            f"{parent}. Older checkpoints are unchanged."
        ) from error


def load_train_state(checkpoint: Path, device: str) -> dict[str, Any]:
    """Load optimizer, schedule and position in the sample plan without running pickled code.

    Raises:
        UserError: the file contains more than tensors and plain values.
    """
    path = checkpoint / TRAIN_STATE_FILE
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be loaded safely: {reason}") from error
