"""The schedule of checkpoints and validations, and their reports to Ray Train."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.collective
from ray.train import CheckpointConsistencyMode, CheckpointUploadMode, ReportedCheckpoint

from imf_ray.checkpoint_dir import SavedCheckpoint, clear_validation
from imf_ray.errors import StorageError
from imf_ray.schema import TrainConfig
from imf_ray.training.run_dir import RunDir
from imf_ray.training.tracking import Tracker

COMMIT_TIMEOUT_S = 30.0
"""Seconds to wait until Ray Train has committed the checkpoints reported so far."""
EARLIER_VALIDATIONS_KEY = "earlier_validations"
"""Key of a report: list of the metrics of all new validations except the latest.

The metrics of the latest validation are in the report itself."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointSchedule:
    """Decides after which training steps a checkpoint is saved, and which ones are validated."""

    train: TrainConfig
    steps_per_epoch: int

    def should_save(self, step: int) -> bool:
        """Return True if a checkpoint is saved after `step` updates."""
        is_regular = step % self.train.save_freq == 0 or step == self.train.max_steps
        return is_regular or self._ends_validation_period(step)

    def should_validate(self, step: int) -> bool:
        """Return True if the checkpoint after `step` updates, if any, must be validated."""
        if self.train.rollout_validate_on_checkpoint and self.should_save(step):
            return True
        is_last = self.train.rollout_val_freq_epochs > 0 and step == self.train.max_steps
        return is_last or self._ends_validation_period(step)

    def _ends_validation_period(self, step: int) -> bool:
        period = self.train.rollout_val_freq_epochs * self.steps_per_epoch
        return period > 0 and step % period == 0


class CheckpointReporter:
    """Reports checkpoints to Ray Train, logs validations and deletes old checkpoints.

    Every rank makes the same calls. Only rank 0 has the tracker and the checkpoints.
    """

    def __init__(
        self,
        run_dir: RunDir,
        schedule: CheckpointSchedule,
        keep_last_k: int,
        tracker: Tracker | None,
    ) -> None:
        self._run_dir = run_dir
        self._schedule = schedule
        self._keep_last_k = keep_last_k
        self._tracker = tracker
        # Includes validations of earlier workers, whose reports Ray Train may not have received.
        self._unreported = [] if tracker is None else run_dir.read_validations()

    def collect_validations(self) -> None:
        """Log the validations that have ended. The next checkpoint's report contains them."""
        if self._tracker is not None:
            self._unreported += self._tracker.log_validations()

    def report(self, step: int, saved: SavedCheckpoint | None) -> None:
        """Report a checkpoint with all new validations, then prune checkpoints.

        Args:
            saved: the checkpoint on rank 0; None on other ranks.
        """
        metrics: dict[str, Any] = {"step": step}
        checkpoint = None
        if saved is not None and self._tracker is not None:
            checkpoint = _as_ray_checkpoint(saved.path)
            # Trials are ranked by validations, which may end after later checkpoints are saved.
            self._run_dir.download_validations()
            self.collect_validations()
            *earlier, latest = self._unreported or [{}]
            metrics |= {**saved.metrics, **latest, EARLIER_VALIDATIONS_KEY: earlier}
            self._unreported = []
        validate = (
            saved is not None and self._schedule.should_validate(step) and not saved.has_validation
        )
        ray.train.report(
            metrics,
            checkpoint=checkpoint,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
            validation=validate,
        )
        self._prune()

    def report_existing_checkpoints(self, step: int) -> None:
        """Report the checkpoints on disk whose report or validation was lost.

        Args:
            step: the training step from which this rank resumes.

        Raises:
            RuntimeError: rank 0 resumes from a different step, so the ranks would deadlock.
        """
        unreported: list[int] = []
        saved: dict[int, SavedCheckpoint] = {}
        if self._tracker is not None:
            saved = {checkpoint.step: checkpoint for checkpoint in self._run_dir.list_checkpoints()}
            reported = {Path(entry.checkpoint.path).name for entry in _reported_checkpoints()}
            unreported = [s for s, c in saved.items() if c.path.name not in reported]
        rank0_step, unreported = ray.train.collective.broadcast_from_rank_zero((step, unreported))
        if step != rank0_step:
            raise RuntimeError(
                f"Rank 0 resumes from step {rank0_step}, this rank from step {step}."
            )
        for saved_step in set(unreported) & saved.keys():  # first, because `report` prunes
            checkpoint = saved[saved_step]
            failed = checkpoint.has_validation and not checkpoint.validation_succeeded
            if failed and self._schedule.should_validate(saved_step):
                saved[saved_step] = clear_validation(checkpoint)
        for saved_step in unreported:
            self.report(saved_step, saved.get(saved_step))

    def wait_for_validations(self) -> None:
        """Wait for running validations and log them, then prune their checkpoints."""
        assert self._tracker is not None
        ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.VALIDATED)
        self._run_dir.download_validations()
        self._tracker.log_validations()
        self._prune()

    def _prune(self) -> None:
        if self._tracker is None:
            return
        try:
            self._run_dir.prune_checkpoints(self._keep_last_k, self._schedule.should_validate)
        except StorageError as error:  # the next call tries again
            log.warning("Old checkpoints are not deleted yet: %s", error)


def _as_ray_checkpoint(checkpoint: Path) -> ray.train.Checkpoint:
    """Return a Ray Train checkpoint for a checkpoint of the run, by its path in Ray's storage."""
    storage = ray.train.get_context().get_storage()
    path = f"{storage.experiment_fs_path}/{checkpoint.name}"
    return ray.train.Checkpoint(path, filesystem=storage.storage_filesystem)


def _reported_checkpoints() -> list[ReportedCheckpoint]:
    """Return the checkpoints that were reported to Ray Train and committed."""
    return ray.train.get_all_reported_checkpoints(
        CheckpointConsistencyMode.COMMITTED, timeout_s=COMMIT_TIMEOUT_S
    )
