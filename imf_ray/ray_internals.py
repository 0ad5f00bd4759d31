"""The private parts of Ray that this package uses. No other module may use private parts.

Each part works around a bug of Ray 2.60 that `tests/ray_bugs` shows, or reads a value for which Ray
has no public function. `tests/unit/test_ray_internals.py` fails if a new version of Ray changes one
of them. After an upgrade, run both, adapt this module, and remove workarounds that are no longer
needed.

Classes are imported on first use (`from imf_ray.ray_internals import DefaultFailurePolicy`). Ray
Train takes long to import, and the processes that read data do not need it.
"""

from __future__ import annotations

import importlib
import logging
import re
import string
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ray

from imf_ray.errors import UserError

RAY_VERSION = "2.60"
"""The version of Ray whose private parts are used."""
_TRAIN = "ray.train.v2._internal"
PRIVATE_CLASSES = {
    # Throttles Ray Data's scheduling loop, see `data/pipeline.py`.
    "ExecutionCallback": "ray.data._internal.execution.execution_callback",
    # Subclassed to count failures since the last checkpoint, and not to retry a diverged run.
    "DefaultFailurePolicy": f"{_TRAIN}.execution.failure_handling.default",
    "FailureDecision": f"{_TRAIN}.execution.failure_handling",
    # Raised if workers get no resources; the run then waits or asks for fewer workers.
    "WorkerGroupStartupTimeoutError": f"{_TRAIN}.exceptions",
    # Subclassed to clean up before new workers start, and to mark lost workers.
    "WorkerGroupCallback": f"{_TRAIN}.execution.callback",
    # Made for run folders whose names Ray does not accept as names of runs.
    "StorageContext": f"{_TRAIN}.execution.storage",
    # Disabled, because it removes the placement groups of healthy workers.
    "PlacementGroupCleanerCallback": f"{_TRAIN}.callbacks.placement_group_callback",
    # Disabled, because it starts an actor for the arguments `datasets`, which is not used.
    "DatasetsCallback": f"{_TRAIN}.callbacks.datasets",
}
"""Private classes of Ray that are used or subclassed, and the module of each."""
TASK_EVENTS_INTERVAL_S = 2.0
"""Seconds within which Ray has surely told the dashboard of a call that has ended."""
log = logging.getLogger(__name__)


def __getattr__(name: str) -> Any:
    """Import one of `PRIVATE_CLASSES`.

    Raises:
        UserError: the installed version of Ray does not have the class.
    """
    if name not in PRIVATE_CLASSES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    try:
        return getattr(importlib.import_module(PRIVATE_CLASSES[name]), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"Ray {ray.__version__} has no {PRIVATE_CLASSES[name]}.{name}, which imf_ray needs. "
            f"Install ray=={RAY_VERSION}.*, or adapt imf_ray/ray_internals.py."
        ) from error


def check_ray_version() -> None:
    """Log a warning if the installed version of Ray is not the tested one, `RAY_VERSION`."""
    if not ray.__version__.startswith(f"{RAY_VERSION}."):
        log.warning(
            "imf_ray uses private parts of Ray %s, but Ray %s is installed. If something fails, "
            "install ray==%s.*",
            *(RAY_VERSION, ray.__version__, RAY_VERSION),
        )


def find_cluster(address: str) -> str:
    """Return the `host:port` of a cluster. The address `auto` is the cluster of this machine.

    Raises:
        OSError, ValueError: no cluster runs here, or the address is none.
    """
    from ray._private.services import canonicalize_bootstrap_address

    found = canonicalize_bootstrap_address(address)
    if found is None:
        raise ValueError("it is not the address of a running cluster")
    return str(found)


def cluster_ray_version(address: str, timeout_s: float) -> str:
    """Ask a cluster for its version of Ray. `ray.init` would wait for an answer for minutes.

    Args:
        address: `host:port`.

    Raises:
        grpc.RpcError: there is no answer in time, or no cluster answers.
    """
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
    from ray.core.generated.gcs_service_pb2 import CheckAliveRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    channel = init_grpc_channel(address, GLOBAL_GRPC_OPTIONS)
    try:
        reply = NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=timeout_s)
    finally:
        channel.close()
    return str(reply.ray_version)


def metric_tag(name: str) -> str:
    """Return a name as the tag of a metric, with other than ASCII characters as in URLs.

    Ray raises a UnicodeEncodeError for a tag that is not ASCII (Ray 2.60).
    """
    return quote(name, safe=string.printable)


def temp_dir() -> str:
    """Return the folder in which a cluster that starts on this machine keeps its files."""
    from ray._common.utils import get_default_ray_temp_dir

    return str(get_default_ray_temp_dir())


def node_log_dir() -> Path:
    """Return the folder of Ray's log files on this node."""
    from ray._private.worker import _global_node

    return Path(_global_node.get_logs_dir_path())


def dashboard_url() -> str | None:
    """Return the address of the dashboard without a scheme, or None if it does not run."""
    from ray._private.worker import get_dashboard_url

    return get_dashboard_url() or None


def num_queued_outputs(executor: Any) -> int:
    """Return the number of finished blocks in the output queue of Ray Data's executor."""
    _, output = executor._output_node
    return len(output.output_queue)


@dataclass(frozen=True)
class PlacementGroupInfo:
    """One placement group with its creator, which Ray's public tables do not contain."""

    id: ray.PlacementGroupID
    creator_job_id: str
    creator_actor: bool
    """True if an actor created it, False if the job's driver did."""
    creator_actor_dead: bool
    """True if that actor is dead; also True if there is no actor, so check `creator_actor`."""
    removed: bool


def placement_groups() -> Iterator[PlacementGroupInfo]:
    """Yield all placement groups of the cluster."""
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


def configure_controller(trainer: Any, policy: Any, run: str) -> None:
    """Make a `TorchTrainer` use `policy`, a `FailurePolicy`, and name its controller after the run.

    The name is only for the dashboard, see `label_train_actors`.
    """
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2.api import data_parallel_trainer

    run_controller = trainer._initialize_and_run_controller

    def run_with_policy(**kwargs: Any) -> Any:
        label = f"controller of {run}"
        data_parallel_trainer.TrainController = _labelled(TrainController, lambda: label)
        return run_controller(**{**kwargs, "failure_policy": policy})

    trainer._initialize_and_run_controller = run_with_policy


def label_train_actors(run: str) -> None:
    """Make the actors that Ray Train's controller starts say their run and role.

    The dashboard shows an actor's `__repr__`, which these actors do not have. This function is
    called in the process of the controller, which belongs to one run.
    """
    from ray.train.v2._internal.callbacks import preemption_callback
    from ray.train.v2._internal.execution.checkpoint.sync_actor import SynchronizationActor
    from ray.train.v2._internal.execution.preemption import PreemptionWatcher
    from ray.train.v2._internal.execution.worker_group import RayTrainWorker, worker_group

    synchronization = SynchronizationActor.__ray_metadata__.modified_class.__ray_actor_class__
    worker_group.WorkerGroup._worker_cls = _labelled(
        RayTrainWorker, lambda: f"training worker {_bundle_index()} of {run}"
    )
    worker_group.SynchronizationActor = ray.remote(num_cpus=0)(
        _labelled(synchronization, lambda: f"synchronization of {run}")
    )
    preemption_callback.PreemptionWatcher = _labelled(
        PreemptionWatcher, lambda: f"preemption watcher of {run}"
    )


def label_trials(trainable: Any, name_param: str) -> None:
    """Make the actor of each Tune trial say the trial's name, the value of one of its parameters.

    Tune gives the actors of all trials the name of the function `trainable`, and their class the
    name `ImplicitFunc`.
    """

    class LabelledTrial:
        def __init_subclass__(cls) -> None:  # the class that Tune makes of the function
            cls.__name__ = cls.__qualname__ = "Trial"

        def setup(self, config: dict[str, Any]) -> None:
            self._name = f"trial {config[name_param]}"
            super().setup(config)  # type: ignore[misc]

    trainable.__mixins__ = (LabelledTrial,)


def _labelled(actor_class: type, label: Callable[[], str]) -> type:
    """Return an actor class with a `__repr__`, which is called once when an actor has started."""
    members = {"__repr__": lambda self: label(), "__doc__": actor_class.__doc__}
    return type(actor_class.__name__, (actor_class,), members)


def _bundle_index() -> int:
    """Return the number of the placement group bundle in which this worker process runs."""
    from ray._private.worker import global_worker

    names = " ".join(global_worker.core_worker.resource_ids())  # such as CPU_group_0_1234abcd
    index = re.search(r"_group_(\d+)_", names)
    return int(index[1]) if index else 0


def wait_for_task_events() -> None:
    """Wait until the dashboard knows which calls of this process have ended.

    Ray tells it once a second. If a process is killed before that, the dashboard counts its last
    calls as failed (Ray 2.60).
    """
    if dashboard_url() is not None:
        time.sleep(TASK_EVENTS_INTERVAL_S)


def start_shared_actors() -> None:
    """Start the actors that all runs on a cluster share.

    Every run starts them if they do not exist. If two runs do so at the same time, one start fails,
    and the dashboard counts a failed task. An actor that a trial starts ends with the resources of
    that trial (Ray 2.60).
    """
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator
    from ray.data._internal.stats import get_or_create_stats_actor
    from ray.train.v2._internal.state.state_actor import get_or_create_state_actor

    get_or_create_state_actor()
    get_or_create_stats_actor()
    default_autoscaling_coordinator.get_or_create_autoscaling_coordinator()


def remove_default_callback(trainer: Any, name: str) -> None:
    """Remove a default callback of a `TorchTrainer`, given its class name in `PRIVATE_CLASSES`."""
    create_callbacks, removed_class = trainer._create_default_callbacks, __getattr__(name)

    def create_others() -> list[Any]:
        return [c for c in create_callbacks() if not isinstance(c, removed_class)]

    trainer._create_default_callbacks = create_others


def reset_failure_count(policy: Any) -> None:
    """Reset the number of worker failures that a `DefaultFailurePolicy` has counted."""
    policy._worker_group_failures = 0
