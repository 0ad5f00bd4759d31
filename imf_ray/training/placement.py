"""The places that workers hold in the cluster, and that nobody else can use once they are lost.

A placement group lives as long as the job that made it, unless somebody removes it. Ray Train
removes that of a controller which was killed with the help of the dashboard, which need not be
there, and of one killed before all its workers had started not at all; and it forgets that of
workers of which one died as they were given their task (Ray 2.60). A lost one is known by its
maker, the controller, being dead.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import ray
from ray._private.state import state
from ray.core.generated import gcs_pb2
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback, WorkerGroupCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group

from imf_ray.errors import StorageError
from imf_ray.storage import delete, to_local
from imf_ray.training.failures import ProgressAwareFailurePolicy
from imf_ray.training.tracking import WORKERS_DIR, mark_workers_lost

log = logging.getLogger(__name__)


class FaultTolerantTorchTrainer(TorchTrainer):
    """A trainer with our `ProgressAwareFailurePolicy`, whose places are freed by `remove_orphaned_placement_groups`
    alone.

    Ray's own cleaner asks the dashboard whether the controller lives, takes "not known", which is
    what a busy head answers, for a no, and takes healthy workers their place (Ray 2.60).
    """

    def __init__(self, run_dir: Path, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._run_dir = run_dir

    def _initialize_and_run_controller(self, **controller: Any) -> ray.train.Result:
        policy = ProgressAwareFailurePolicy(self.run_config.failure_config, self._run_dir)
        return super()._initialize_and_run_controller(**{**controller, "failure_policy": policy})

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = super()._create_default_callbacks()
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]


class OrphanedPlacementGroupCleanup(WorkerGroupCallback):
    """Frees, in Ray Train's controller, what earlier workers held, and forgets who they were."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """Make room for the workers to come."""
        remove_orphaned_placement_groups()
        try:
            delete(to_local(self._run_dir) / WORKERS_DIR)
        except StorageError as error:  # they write their records anew
            log.warning("Who the last workers were is not forgotten: %s", error)

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Note that workers are gone, of which one failed: Ray ends the others."""
        if worker_group_status.errors:
            mark_workers_lost(to_local(self._run_dir))


def remove_orphaned_placement_groups(made_by_driver: bool = False) -> None:
    """Remove the placement groups of this job whose makers are dead, with the workers in them.

    Args:
        made_by_driver: also those that the job's driver made, since it has forgotten them.
    """
    if not ray.is_initialized():  # asked for later, and the job has ended since
        return
    job = ray.get_runtime_context().get_job_id()
    # No public list tells who made a group (Ray 2.60).
    for entry in state._connect_and_get_accessor().get_placement_group_table():
        group = gcs_pb2.PlacementGroupTableData.FromString(entry)
        was_made_here = group.creator_job_id.hex() == job
        # To Ray, an actor that never was, where a driver made the group, is dead, too.
        has_maker = not ray.ActorID(group.creator_actor_id).is_nil()
        is_lost = group.creator_actor_dead if has_maker else made_by_driver
        removed = gcs_pb2.PlacementGroupTableData.PlacementGroupState.REMOVED
        if was_made_here and is_lost and group.state != removed:
            log.info("Freeing a place that nobody holds any more")
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
