"""The place that a run's workers hold in the cluster, and that nobody else can use if it is lost.

A placement group lives as long as the job that made it, unless somebody removes it. Ray Train
removes that of a controller which was killed with the help of the dashboard, which need not be
there, and forgets that of workers of which one died as they were given their task (Ray 2.60).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group

from imf_ray.errors import StorageError
from imf_ray.files import write_atomically
from imf_ray.places import here, origin, read_if_there, remove
from imf_ray.training.tracking import WORKERS_DIR

PLACE = f"{WORKERS_DIR}/placement_group"
"""Holds the hex id of the placement group of a run's workers."""
log = logging.getLogger(__name__)


class PlaceKeeper(WorkerGroupCallback):
    """Notes, in Ray Train's controller, where the workers are, before one of them can die.

    What workers before them left is freed and forgotten.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """Free what the last workers may have held."""
        run_dir = here(self._run_dir)
        try:
            free(place_of(run_dir))
            remove(run_dir / WORKERS_DIR)
        except StorageError as error:  # a place that is lost must not end a training
            log.warning("The place of earlier workers may not be free: %s", error)

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        """Note the place of workers that are there; it adds nothing to their context."""
        group = ray.get(workers[0].execute_async(_own_placement_group))
        try:
            write_atomically(here(self._run_dir) / PLACE, group)
        except StorageError as error:
            log.warning("The place of the workers is not noted: %s", error)
        return {}


def _own_placement_group() -> str:
    group = ray.get_runtime_context().get_placement_group_id()
    assert group is not None
    return group


def place_of(run_dir: Path) -> str | None:
    """Hex id of the placement group of the run's workers, once there are any.

    Raises:
        StorageError: it cannot be read.
    """
    return read_if_there(origin(run_dir / PLACE))


def free(group: str | None) -> None:
    """Remove a placement group, with the workers in it; it need not be there any more."""
    if group is not None:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group)))
