"""Checkpoints of a run: an agent's folder, the trainer's state, and a manifest that seals them.

A checkpoint is written under a temporary name, synced and renamed; its manifest holds the digest
of every file. A folder without a matching manifest is not a checkpoint, so that one rule finds the
newest valid one wherever a run goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from imf_ray.agents.pretrained import save_agent
from imf_ray.agents.vla import VLAAgent
from imf_ray.config import Config
from imf_ray.errors import UserError

PREFIX, PARTIAL = "checkpoint_", ".partial_"
MANIFEST, TRAINER_STATE = "manifest.json", "trainer_state.pt"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint on disk."""

    path: Path
    step: int
    epoch: float


def save_checkpoint(
    run_dir: Path,
    step: int,
    epoch: float,
    agent: VLAAgent,
    config: Config,
    ema: Mapping[str, torch.Tensor] | None,
    trainer_state: Mapping[str, Any],
) -> SavedCheckpoint:
    """Write the checkpoint after `step` updates: complete or absent.

    Raises:
        UserError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    final = run_dir / f"{PREFIX}{step:08d}"
    partial = run_dir / f"{PARTIAL}{step:08d}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_agent(partial, agent, config, ema)
        torch.save(dict(trainer_state), partial / TRAINER_STATE)
        files = {path.name: _digest(path) for path in sorted(partial.iterdir())}
        manifest = {"step": step, "epoch": epoch, "files": files}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in [*partial.iterdir(), partial]:
            _sync(path)
        if final.exists():  # an invalid one of an earlier attempt: valid ones are resumed from
            shutil.rmtree(final)
        os.replace(partial, final)
        _sync(run_dir)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"The checkpoint {final} cannot be written: {error}.") from error
    return SavedCheckpoint(final, step, epoch)


def newest_checkpoint(run_dir: Path) -> SavedCheckpoint | None:
    """The valid checkpoint with most steps; bad ones are passed over with a warning."""
    for path in sorted(run_dir.glob(f"{PREFIX}*"), reverse=True):
        try:
            return read_checkpoint(path)
        except UserError as error:
            log.warning("Passed over: %s", error)
    return None


def read_checkpoint(path: Path) -> SavedCheckpoint:
    """Verify a checkpoint folder.

    Raises:
        UserError: it has no manifest, or a file does not match it.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, digest in manifest["files"].items():
            if _digest(path / name) != digest:
                raise UserError(f"{path} is not a valid checkpoint: {name} was changed.")
        return SavedCheckpoint(path, int(manifest["step"]), float(manifest["epoch"]))
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not a valid checkpoint: {error}.") from error


def load_trainer_state(path: Path, device: str) -> dict[str, Any]:
    """Optimizer, schedule and averaged weights; no code is run by loading them."""
    return torch.load(path / TRAINER_STATE, map_location=device, weights_only=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
