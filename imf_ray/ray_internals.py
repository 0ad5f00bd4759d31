"""The private parts of Ray that this package uses; no other module may touch any.

Each works around a fault of Ray 2.60 that `tests/ray_bugs` shows, or reads what Ray has no public
name for. `tests/unit/test_ray_internals.py` fails for each that a new version of Ray changes. After
an upgrade: run both, adapt this module, and remove what is no longer needed.

Classes are imported on first use (`from imf_ray.ray_internals import DefaultFailurePolicy`), since
Ray Train takes long to import and the processes that read data do not need it.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from imf_ray.errors import UserError

RAY_VERSION = "2.60"
"""The version of Ray whose private parts are used."""
_TRAIN = "ray.train.v2._internal"
PRIVATE_CLASSES = {
    # Throttles Ray Data's scheduling loop, see `data/pipeline.py`.
    "ExecutionCallback": "ray.data._internal.execution.execution_callback",
    # Counts failures from the last checkpoint on; ends a run at once if retrying is useless.
    "DefaultFailurePolicy": f"{_TRAIN}.execution.failure_handling.default",
    "FailureDecision": f"{_TRAIN}.execution.failure_handling",
    # Workers without resources: the run waits, or asks for fewer.
    "WorkerGroupStartupTimeoutError": f"{_TRAIN}.exceptions",
    # Cleans up between two groups of workers, and marks lost workers.
    "WorkerGroupCallback": f"{_TRAIN}.execution.callback",
    # Ray's own cleaner removes the placement groups of healthy workers.
    "PlacementGroupCleanerCallback": f"{_TRAIN}.callbacks.placement_group_callback",
}
"""Private classes of Ray that are used or subclassed: name and module."""
log = logging.getLogger(__name__)


def __getattr__(name: str) -> Any:
    """Import one of `PRIVATE_CLASSES`.

    Raises:
        UserError: the installed version of Ray does not have it.
    """
    if name not in PRIVATE_CLASSES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    try:
        return getattr(importlib.import_module(PRIVATE_CLASSES[name]), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"Ray {ray.__version__} has no {PRIVATE_CLASSES[name]}.{name}, which imf_ray needs: "
            f"install ray=={RAY_VERSION}.*, or adapt imf_ray/ray_internals.py."
        ) from error


def check_ray_version() -> None:
    """Log a warning if the installed version of Ray is not the one that is tested."""
    if not ray.__version__.startswith(f"{RAY_VERSION}."):
        log.warning(
            "imf_ray uses private parts of Ray %s and Ray %s is installed: if something fails, "
            "install ray==%s.*",
            *(RAY_VERSION, ray.__version__, RAY_VERSION),
        )


def node_log_dir() -> Path:
    """The folder of Ray's log files on this node."""
    from ray._private.worker import _global_node

    return Path(_global_node.get_logs_dir_path())


def dashboard_url() -> str | None:
    """The address of the dashboard without a scheme; None if it does not run."""
    from ray._private.worker import get_dashboard_url

    return get_dashboard_url() or None


def num_queued_outputs(executor: Any) -> int:
    """The number of blocks that Ray Data's executor has ready and nobody has taken."""
    _, output = executor._output_node
    return len(output.output_queue)


@dataclass(frozen=True)
class PlacementGroupInfo:
    """One placement group, with the creator that Ray's public tables leave out."""

    id: ray.PlacementGroupID
    creator_job_id: str
    creator_actor: bool
    """True if an actor created it, False if the job's driver did."""
    creator_actor_dead: bool
    """True if that actor is dead. Not meaningful without one: Ray calls a missing actor dead."""
    removed: bool


def placement_groups() -> Iterator[PlacementGroupInfo]:
    """All placement groups of the cluster."""
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    table = gcs_pb2.PlacementGroupTableData
    for entry in state._connect_and_get_accessor().get_placement_group_table():
        group = table.FromString(entry)
        yield PlacementGroupInfo(
            id=ray.PlacementGroupID(group.placement_group_id),
            creator_job_id=group.creator_job_id.hex(),
            creator_actor=not ray.ActorID(group.creator_actor_id).is_nil(),
            creator_actor_dead=group.creator_actor_dead,
            removed=group.state == table.PlacementGroupState.REMOVED,
        )


def set_failure_policy(trainer: Any, policy: Any) -> None:
    """Make a `TorchTrainer` decide about failures by `policy`, a `FailurePolicy`."""
    run_controller = trainer._initialize_and_run_controller

    def run_with_policy(**kwargs: Any) -> Any:
        return run_controller(**{**kwargs, "failure_policy": policy})

    trainer._initialize_and_run_controller = run_with_policy


def remove_default_callback(trainer: Any, name: str) -> None:
    """Remove one of a `TorchTrainer`'s default callbacks, by its name in `PRIVATE_CLASSES`."""
    create_callbacks, removed_class = trainer._create_default_callbacks, __getattr__(name)

    def create_others() -> list[Any]:
        return [c for c in create_callbacks() if not isinstance(c, removed_class)]

    trainer._create_default_callbacks = create_others


def reset_failure_count(policy: Any) -> None:
    """Make a `DefaultFailurePolicy` forget the failures of workers so far."""
    policy._worker_group_failures = 0
