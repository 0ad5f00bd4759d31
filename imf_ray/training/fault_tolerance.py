"""Retries of failed workers and controllers, and removal of the resources they leave behind.

A placement group exists until somebody removes it or the job that created it ends. Ray Train 2.60
leaks a placement group in three cases:

* The controller was killed. Ray's cleaner needs the dashboard, which may not run.
* The controller was killed before all of its workers had started.
* A worker died while it was receiving its task.

A leaked group was created by a controller that is now dead. This is how it is recognized.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import ray
import ray.train
from ray.exceptions import RayActorError, RayTaskError
from ray.train import FailureConfig
from ray.train.torch import TorchTrainer
from ray.util.placement_group import PlacementGroup, remove_placement_group

from imf_ray import ray_internals
from imf_ray.allocation import RunResources
from imf_ray.errors import StorageError, UserError
from imf_ray.ray_internals import (
    DefaultFailurePolicy,
    FailureDecision,
    WorkerGroupCallback,
    WorkerGroupStartupTimeoutError,
)
from imf_ray.training.run_dir import RunDir

log = logging.getLogger(__name__)


class CheckpointProgress:
    """Tracks whether a run has saved new checkpoints."""

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir, self._step = run_dir, run_dir.newest_step() or 0

    def advanced(self) -> bool:
        """Return True if a newer checkpoint was saved since the last call."""
        # newest_step is None while the folder cannot be read: keep the last step then.
        previous, self._step = self._step, max(self._step, self._run_dir.newest_step() or 0)
        return self._step > previous


class ProgressAwareFailurePolicy(DefaultFailurePolicy):
    """Ray Train's failure policy with two changes.

    Only failures since the last checkpoint are counted, so a long run can survive many. Invalid
    input and a diverged run are not retried, because the same training steps would fail again. A
    storage that fails may recover.
    """

    def __init__(self, failure_config: FailureConfig, run_dir: RunDir) -> None:
        super().__init__(failure_config)
        self._progress = CheckpointProgress(run_dir)

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        """Decide whether to retry or to raise."""
        cause = find_user_error(training_failed_error)
        if cause is not None and not isinstance(cause, StorageError):
            return FailureDecision.RAISE
        if self._progress.advanced():
            ray_internals.reset_failure_count(self)
        return super().make_decision(training_failed_error)


class FaultTolerantTorchTrainer(TorchTrainer):
    """A `TorchTrainer` with `ProgressAwareFailurePolicy` and without two of Ray's callbacks.

    The placement group cleaner asks the dashboard whether the controller is alive. A busy head node
    may answer "not known". The cleaner then assumes that the controller is dead, and removes the
    placement group of healthy workers (Ray 2.60). `remove_orphaned_placement_groups` replaces it.

    The other one starts an actor that gives each worker its dataset. Workers make it themselves.
    """

    def __init__(self, run_dir: RunDir, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        policy = ProgressAwareFailurePolicy(self.run_config.failure_config, run_dir)
        ray_internals.configure_controller(self, policy, run_dir.name)
        ray_internals.remove_default_callback(self, "PlacementGroupCleanerCallback")
        ray_internals.remove_default_callback(self, "DatasetsCallback")


class OrphanedPlacementGroupCleanup(WorkerGroupCallback):
    """Callback of Ray Train's controller that cleans up after earlier workers."""

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """Free the resources and delete the records of earlier workers."""
        ray_internals.label_train_actors(self._run_dir.name)
        remove_orphaned_placement_groups()
        try:
            self._run_dir.delete_workers()
        except StorageError as error:  # new workers overwrite them
            log.warning("The records of earlier workers cannot be deleted: %s", error)

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Mark all workers as lost if one failed, because Ray then ends the others."""
        if worker_group_status.errors:
            self._run_dir.mark_workers_lost()


def remove_orphaned_placement_groups(include_driver: bool = False) -> None:
    """Remove this job's placement groups whose creators are dead, with the workers in them.

    Args:
        include_driver: also remove groups that the job's driver created but no longer manages.
    """
    if not ray.is_initialized():  # a delayed call after the job has ended
        return
    job_id = ray.get_runtime_context().get_job_id()
    for group in ray_internals.placement_groups():
        is_orphaned = group.creator_actor_dead if group.creator_actor else include_driver
        if group.creator_job_id == job_id and is_orphaned and not group.removed:
            log.info("Removing the orphaned placement group %s", group.id.hex())
            remove_placement_group(PlacementGroup(group.id))


def fit_with_controller_restarts(
    make_trainer: Callable[[int], TorchTrainer],
    run_dir: RunDir,
    resources: RunResources,
    max_failures: int,
) -> ray.train.Result:
    """Train, and restart Ray Train's controller when it fails for reasons unrelated to training.

    Examples: the controller cannot write its own list of checkpoints (a full disk, a network
    error), it is killed, or a worker dies during start-up. The controller is restarted at most
    `max_failures` times without a new checkpoint. Waiting for nodes is not counted or limited.

    An elastic run may wait for more workers than fit, because Ray counts resources in use by other
    jobs and nodes of other pools as free (Ray 2.60). The run is then restarted with fewer workers.
    It does not grow again until the next restart.

    Args:
        make_trainer: makes a trainer for a maximum number of workers.
        max_failures: maximum number of controller failures without a new checkpoint.

    Raises:
        ray.train.TrainingFailedError: training failed, or the controller failed too often.
        ray.exceptions.RayActorError: the controller died too often.
    """
    max_workers, num_failures = resources.max_workers, 0
    progress = CheckpointProgress(run_dir)
    while True:
        # Ray cannot read its list of checkpoints if a write was cut off or a listed checkpoint was
        # deleted. The training loop reports the checkpoints in the run folder again.
        run_dir.delete_ray_snapshot()
        try:
            return make_trainer(max_workers).fit()
        except (ray.train.ControllerError, RayActorError) as error:
            cause = getattr(error, "controller_failure", error)
            if isinstance(cause, WorkerGroupStartupTimeoutError):
                requested = cause.num_workers
                log.warning("%s waits for resources for %d worker(s)", run_dir, requested)
                max_workers = max(resources.min_workers, requested - 1)
                continue
            num_failures = 1 if progress.advanced() else num_failures + 1
            if num_failures > max_failures:
                raise
            max_workers = resources.max_workers  # more may fit by now
            log.warning("Training in %s restarts: %s", run_dir, cause)


def find_user_error(error: BaseException) -> UserError | None:
    """Return the `UserError` that caused a training to fail, or None."""
    failures = [*getattr(error, "worker_failures", {}).values()]
    for failure in [*failures, getattr(error, "controller_failure", None)]:
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, RayTaskError):  # wraps the exception of another process
                cause = cause.cause
            if isinstance(cause, UserError):
                return cause
            cause = cause.__cause__ or getattr(cause, "base_exc", None)
    return None


def error_summary(error: BaseException) -> str:
    """Return the last line of an error message, which may be a traceback of another process."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else repr(error)
