"""Connects to a Ray cluster or starts one, and determines its size and its node pools."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

from imf_ray.env_vars import prepare_environment
from imf_ray.errors import UserError
from imf_ray.interrupts import children_ignore_hangup
from imf_ray.progress_bars import activity
from imf_ray.schema import ClusterConfig, Config
from imf_ray.terminal import console

TRAIN_POOL, SIM_POOL, DATA_POOL = POOLS = ("train", "sim", "data")
"""Values of the node label `cluster.node_pool_label`. They name the kind of work that a node does:
training workers, rollout actors (simulation) or read tasks."""
HEAD_NODE_RESOURCE = "node:__internal_head__"
"""Name of the resource that only the head node of a Ray cluster has."""
ADDRESS_VARIABLE, LOCAL_ADDRESS = "RAY_ADDRESS", "local"
"""Ray's environment variable for the address of a cluster, and the address of a new local one."""
CONNECT_TIMEOUT_S = 5.0
"""Seconds to wait for the answer of a cluster."""
Result = TypeVar("Result")
MAX_REASON_LENGTH = 300
"""Maximum length in characters of Ray's reason in an error message."""


@dataclass(frozen=True)
class ClusterSize:
    """The nodes of a cluster, including pending ones, which an autoscaler may still add."""

    nodes: tuple[tuple[float, float], ...]
    """Logical CPUs and GPUs of each node."""
    pools: Mapping[str, ClusterSize] = field(default_factory=dict)
    """The nodes of each pool; empty if every node does every kind of work."""
    pending: int = 0
    """Number of nodes that have not joined yet. They are the last entries of `nodes`."""

    def pool(self, name: str) -> ClusterSize:
        """Return the nodes of one pool, or all nodes if there are no pools."""
        return self.pools.get(name, self)

    @property
    def cpus(self) -> float:
        """Logical CPUs of all nodes."""
        return sum(cpus for cpus, _ in self.nodes)

    @property
    def gpus(self) -> float:
        """Logical GPUs of all nodes."""
        return sum(gpus for _, gpus in self.nodes)

    def __str__(self) -> str:
        pending = f", {self.pending} of them pending," if self.pending else ""
        nodes = f"{len(self.nodes)} node(s){pending}"
        return f"{nodes} with {self.cpus:g} CPUs and {self.gpus:g} GPUs"


def init_ray(config: Config) -> ClusterSize:
    """Connect to the configured cluster or start a local one, and return its size.

    The size includes pending nodes up to `cluster.autoscale_max_nodes`.

    Raises:
        UserError: the cluster cannot be reached or lacks a pool, Ray cannot start here, or
            `cluster.autoscale_max_nodes` is set for a local cluster.
    """
    environment = _prepare(config)
    with _activity(config):
        _connect_or_start(config, environment)
    return _report_cluster(config)


def init_ray_beside(config: Config, work: Callable[[], Result]) -> tuple[ClusterSize, Result]:
    """Call `init_ray`, and `work` in another thread meanwhile; return both results.

    While `work` runs, only `work` shows what it does. Ray starts in this thread, because only the
    main thread may change the handlers of signals.

    Raises:
        UserError: see `init_ray`.
        Exception: the error of `work`, once Ray has started.
    """
    environment = _prepare(config)
    outcome: Future[Result] = Future()
    has_started = threading.Event()

    def run_work() -> None:
        try:
            result = work()
            if not has_started.is_set():
                with _activity(config):
                    has_started.wait()
            outcome.set_result(result)
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run_work, daemon=True).start()
    try:
        _connect_or_start(config, environment)
    finally:
        has_started.set()
    result = outcome.result()
    return _report_cluster(config), result


@contextmanager
def ray_stopped_after() -> Iterator[None]:
    """Disconnect from Ray after the `with` block, if the block has connected to it or started it.

    Otherwise Ray would do so when the process exits. This takes seconds, which a terminal shows.
    """
    was_connected = _is_connected()
    yield
    if not was_connected and _is_connected():
        with activity("Stopping Ray") if console.is_terminal else nullcontext():
            sys.modules["ray"].shutdown()


def _is_connected() -> bool:
    """Return True if this process is connected to Ray; does not import Ray."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _prepare(config: Config) -> dict[str, str]:
    """Check the options, set the environment and import Ray; return the variables of the job."""
    cluster, address = config.cluster, cluster_address(config)
    if cluster.autoscale_max_nodes is not None and not address:
        raise UserError(
            f"cluster.autoscale_max_nodes={cluster.autoscale_max_nodes} is for an autoscaling "
            "cluster. A local cluster cannot add nodes. Set cluster.address, or set "
            "cluster.autoscale_max_nodes=null."
        )
    environment = prepare_environment(own_cluster=address is None)
    # Not at the top: Ray reads its environment variables on import.
    from imf_ray.ray_internals import check_ray_version

    check_ray_version()
    return environment


def _activity(config: Config) -> AbstractContextManager[None]:
    """Show that Ray starts, or that the cluster is asked."""
    return activity("Connecting to Ray" if cluster_address(config) else "Starting Ray")


def _connect_or_start(config: Config, environment: Mapping[str, str]) -> None:
    import ray

    if ray.is_initialized():  # an earlier command of this process has started or found it
        return
    address = cluster_address(config)
    with children_ignore_hangup():
        if address:
            _connect(address, _address_source(config), environment, config.debug)
        else:
            _start_local(config)


def _report_cluster(config: Config) -> ClusterSize:
    """Print and return the size of the cluster."""
    import ray

    address = cluster_address(config)
    size = cluster_size([node for node in ray.nodes() if node["Alive"]], config.cluster)
    url = ray.get_runtime_context().gcs_address if address else _dashboard_url()
    console.print(f"Ray: {size}; {'cluster' if address else 'dashboard'} {url}")
    return size


def cluster_address(config: Config) -> str | None:
    """Return the address of the cluster to connect to, or None to start a local one.

    If `cluster.address` is null, the address is RAY_ADDRESS, which Ray sets in a submitted job.
    """
    address = config.cluster.address or os.environ.get(ADDRESS_VARIABLE)
    return None if address in ("", LOCAL_ADDRESS) else address


def _address_source(config: Config) -> str:
    """Return the option or the environment variable that sets the address, with its value."""
    variable = f"{ADDRESS_VARIABLE}={os.environ.get(ADDRESS_VARIABLE)}"
    if config.cluster.address is None:
        return f"the environment variable {variable}"
    # Ray prefers the variable to `auto`.
    is_replaced = config.cluster.address == "auto" and os.environ.get(ADDRESS_VARIABLE)
    return f"cluster.address={config.cluster.address}{f' with {variable}' if is_replaced else ''}"


def _connect(address: str, source: str, environment: Mapping[str, str], debug: bool) -> None:
    """Connect to a cluster.

    Args:
        source: the option or variable that sets the address, for errors.
        environment: environment variables of the job's processes.

    Raises:
        UserError: the cluster cannot be reached.
    """
    import grpc
    import ray

    from imf_ray.ray_internals import cluster_ray_version, find_cluster

    other = (
        f"To start Ray on this machine instead, set cluster.address={LOCAL_ADDRESS}. The address "
        f"comes from {source}."
    )
    if "://" in address:
        raise UserError(
            f"{address} is not the address of a cluster. Ray Client (ray://) is not supported, and "
            "http:// is for `ray job submit`. Use HOST:PORT, usually port 6379, on a node of the "
            f"cluster. {other}"
        )
    failures = (grpc.RpcError, OSError, RuntimeError, ValueError, ray.exceptions.RayError)
    try:
        version = cluster_ray_version(find_cluster(address), CONNECT_TIMEOUT_S)
    except failures as error:
        raise UserError(f"{_connection_problem(address, error)} {other}") from error
    if version != ray.__version__:
        raise UserError(
            f"The cluster at {address} runs Ray {version}, and this process Ray "
            f"{ray.__version__}. Install ray=={version} here. {other}"
        )
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": dict(environment)},
            log_to_driver=debug,
            logging_level=logging.WARNING,
        )
    except failures as error:
        raise UserError(f"{_connection_problem(address, error)} {other}") from error


def _connection_problem(address: str, error: Exception) -> str:
    """Return the reason why a cluster cannot be reached, and what to do about it."""
    import grpc
    import ray

    code = error.code() if isinstance(error, grpc.RpcError) else None
    no_token = code == grpc.StatusCode.UNAUTHENTICATED
    if no_token or isinstance(error, ray.exceptions.AuthenticationError):
        return (
            f"The cluster at {address} requires a token that this process does not have. Set "
            "RAY_AUTH_MODE=token and copy the cluster's ~/.ray/auth_token to this machine."
        )
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        reason = f"tried for {CONNECT_TIMEOUT_S:g} s"
    else:
        reason = error.details() if isinstance(error, grpc.RpcError) else str(error)
    return (
        f"No Ray cluster answers at {address} ({' '.join(reason.split())[:MAX_REASON_LENGTH]}). "
        "Correct the address, or start a cluster with `ray start --head`."
    )


def _start_local(config: Config) -> None:
    """Start a cluster on this machine, which ends with this process.

    Raises:
        UserError: Ray cannot start here.
    """
    import ray

    from imf_ray.ray_internals import temp_dir

    cluster = config.cluster
    try:
        ray.init(
            address=LOCAL_ADDRESS,
            num_cpus=cluster.num_cpus,
            num_gpus=cluster.num_gpus,
            include_dashboard=cluster.include_dashboard,
            dashboard_host="127.0.0.1",
            # No `runtime_env`, because Ray's processes inherit the environment. Creating a runtime
            # environment takes time, and the workers that Ray prestarts do not have it.
            log_to_driver=config.debug,  # if False, workers' output is only in their log files
            logging_level=logging.WARNING,
        )
    except Exception as error:
        expected = (OSError, RuntimeError, ValueError, ray.exceptions.RayError)
        # A plain `Exception` is what Ray raises if its processes do not start in time.
        if not isinstance(error, expected) and type(error) is not Exception:
            raise
        raise UserError(
            f"Ray cannot start on this machine: {error} Its files and logs are in {temp_dir()}. "
            "That folder must be writable and not full, and its path short: set the environment "
            "variable RAY_TMPDIR to another one, such as /tmp. If the machine is busy, try again "
            "later."
        ) from error


def cluster_size(nodes: Sequence[Mapping[str, Any]], cluster: ClusterConfig) -> ClusterSize:
    """Compute the size of a cluster, including pending nodes.

    Args:
        nodes: the alive nodes of `ray.nodes()`.

    Raises:
        UserError: a pool has no node, or there is no current node from which to take the size of
            pending nodes.
    """
    if cluster.node_pool_label is None:
        return _with_pending_nodes(nodes, cluster.autoscale_max_nodes)
    members: dict[str, list[Mapping[str, Any]]] = {pool: [] for pool in POOLS}
    others: list[Mapping[str, Any]] = []
    for node in nodes:
        members.get(node["Labels"].get(cluster.node_pool_label), others).append(node)
    empty = [f"{cluster.node_pool_label}={pool}" for pool in POOLS if not members[pool]]
    if empty:
        raise UserError(
            f"No node of the cluster has the label {' or '.join(empty)}. Start such nodes with "
            f"`ray start --labels={empty[0]}`, or set cluster.node_pool_label=null to use all "
            "nodes for all kinds of work."
        )
    pools = {
        pool: _with_pending_nodes(members[pool], cluster.autoscale_max_nodes) for pool in POOLS
    }
    parts = [_with_pending_nodes(others, None), *pools.values()]
    return ClusterSize(
        tuple(node for part in parts for node in part.nodes),
        pools,
        sum(part.pending for part in parts),
    )


def label_selector(node_pool_label: str | None, pool: str) -> dict[str, Any]:
    """Return the Ray option that schedules work on a pool's nodes; {} if there are no pools."""
    return {} if node_pool_label is None else {"label_selector": {node_pool_label: pool}}


def _with_pending_nodes(
    nodes: Sequence[Mapping[str, Any]], autoscale_max_nodes: int | None
) -> ClusterSize:
    """Return the current nodes and pending ones, up to `autoscale_max_nodes` in total.

    The head node is not counted. A pending node is assumed to have the smallest number of CPUs and
    the smallest number of GPUs among the current nodes.
    """
    current = tuple(_node_resources(node) for node in nodes)
    workers = [
        _node_resources(node) for node in nodes if HEAD_NODE_RESOURCE not in node["Resources"]
    ]
    if autoscale_max_nodes is None or autoscale_max_nodes <= len(workers):
        return ClusterSize(current)
    if not workers:
        raise UserError(
            f"cluster.autoscale_max_nodes={autoscale_max_nodes}: the cluster has only its head "
            "node, so the size of further nodes is unknown. Keep at least one other node running. "
            "If there are pools, keep one running in each pool."
        )
    cpus, gpus = (min(values) for values in zip(*workers, strict=True))
    pending = autoscale_max_nodes - len(workers)
    return ClusterSize((*current, *[(cpus, gpus)] * pending), pending=pending)


def _node_resources(node: Mapping[str, Any]) -> tuple[float, float]:
    """Return the logical CPUs and GPUs of a node."""
    return node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)


def _dashboard_url() -> str:
    """Return the URL of the dashboard, or 'off'."""
    from imf_ray.ray_internals import dashboard_url

    url = dashboard_url()
    return f"http://{url}" if url else "off"
