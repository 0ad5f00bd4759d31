"""Allocation of CPUs and GPUs, and the size of clusters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imf_ray.allocation import allocate_rollout_actors, allocate_run, max_concurrent_trials
from imf_ray.cluster import HEAD_NODE_RESOURCE, POOLS, ClusterSize, cluster_size
from imf_ray.config import load_config
from imf_ray.errors import UserError

TWO_CPUS = ClusterSize(((2.0, 0.0),))
TWO_GPU_NODES = ClusterSize(((16.0, 4.0), (16.0, 4.0)))


@given(
    cpus=st.integers(1, 64),
    trials=st.integers(1, 4),
    workers=st.integers(1, 4),
    actors=st.integers(1, 8),
)
def test_computed_resources_always_fit(cpus: int, trials: int, workers: int, actors: int) -> None:
    config = load_config([f"cluster.num_workers={workers}", f"cluster.num_rollout_actors={actors}"])
    size = ClusterSize(((float(cpus), 0.0),))
    run = allocate_run(config, size, trials)
    assert run.cpus * trials <= cpus + 1e-6
    assert min(run.cpus_per_worker, run.rollout.num_cpus) > 0


def test_two_quickstart_trials_fit_on_two_cpus() -> None:
    config = load_config([])
    assert max_concurrent_trials(config, TWO_CPUS, 8) == 2
    assert allocate_run(config, TWO_CPUS, concurrent_trials=2).cpus <= 1.0


def test_number_of_gpus_limits_concurrent_trials() -> None:
    config = load_config(["train.device=cuda", "cluster.num_workers=2"])
    assert max_concurrent_trials(config, TWO_GPU_NODES, 8) == 4
    shared = load_config(["train.device=cuda", "cluster.gpus_per_worker=0.5"])
    assert max_concurrent_trials(shared, TWO_GPU_NODES, 20) == 16
    wasteful = load_config(["train.device=cuda", "cluster.gpus_per_worker=0.4"])
    assert max_concurrent_trials(wasteful, ClusterSize(((8.0, 2.0),)), 8) == 4


@pytest.mark.parametrize(
    ("options", "node", "trials"),
    [
        (["cluster.cpus_per_rollout_actor=2"], (8.0, 0.0), 1),
        (["cluster.cpus_per_rollout_actor=0.5", "cluster.num_rollout_actors=2"], (2.0, 0.0), 1),
        (["train.device=cuda", "cluster.cpus_per_worker=4"], (8.0, 8.0), 1),
        (["train.device=cuda", "cluster.cpus_per_worker=2"], (16.0, 8.0), 7),
    ],
)
def test_configured_resources_limit_concurrent_trials(
    options: list[str], node: tuple[float, float], trials: int
) -> None:
    size = ClusterSize((node,))
    config = load_config(options)
    assert max_concurrent_trials(config, size, 8) == trials
    allocate_run(config, size, trials)
    with pytest.raises(UserError, match=r"Lower tune\.max_concurrent_trials|No CPU is left"):
        allocate_run(config, size, trials + 1)


def test_two_large_trials_on_uneven_nodes_run_one_at_a_time() -> None:
    """With two at a time, each would get more CPUs than all nodes but one have."""
    size = ClusterSize(((1.0, 0.0), (4.0, 0.0), (4.0, 0.0), (8.0, 0.0)))
    assert max_concurrent_trials(load_config([]), size, 20) > 2
    assert max_concurrent_trials(load_config([]), size, 2) == 1


def test_default_config_fits_clusters_of_small_nodes() -> None:
    for nodes in (((4.0, 0.0),) * 4, ((2.0, 0.0),) * 2):
        run = allocate_run(load_config([]), ClusterSize(nodes))
        assert run.cpus_per_worker <= nodes[0][0]
    mixed = ClusterSize(((64.0, 0.0), (8.0, 4.0)))
    run = allocate_run(load_config(["train.device=cuda", "cluster.num_workers=4"]), mixed)
    assert run.max_workers * run.cpus_per_worker <= 8.0


def test_each_part_uses_the_nodes_of_its_pool() -> None:
    pools = {
        "train": ClusterSize(((16.0, 4.0),)),
        "sim": ClusterSize(((64.0, 0.0), (64.0, 0.0))),
        "data": ClusterSize(((8.0, 0.0),)),
    }
    size = ClusterSize(tuple(n for pool in pools.values() for n in pool.nodes), pools)
    options = ["train.device=cuda", "cluster.num_workers=2", "cluster.node_pool_label=pool"]
    config = load_config([*options, "cluster.num_rollout_actors=100"])
    run = allocate_run(config, size)
    options_of_one = {"num_cpus": 1.0, "num_gpus": 0.0, "label_selector": {"pool": "sim"}}
    assert run.rollout.ray_options == options_of_one
    assert run.cpus_per_worker == pytest.approx(0.6 * 16 / 2, abs=0.01)
    assert max_concurrent_trials(config, size, 8) == 2
    rollout = allocate_rollout_actors(config, size)
    assert rollout.num_actors == 128
    assert rollout.ray_options == options_of_one
    with pytest.raises(UserError, match=r"8 worker.* has 4"):
        allocate_run(load_config([*options, "cluster.num_workers=8"]), size)
    with pytest.raises(UserError, match=r"Only 128 of 129 rollout actor"):
        actors = ["cluster.num_rollout_actors=129", "cluster.cpus_per_rollout_actor=1"]
        allocate_run(load_config([*options, *actors]), size)
    unlabelled = allocate_run(load_config(["train.device=cuda"]), size)
    assert "label_selector" not in unlabelled.rollout.ray_options


def _node(cpus: float, gpus: float = 0.0, pool: str | None = None, head: bool = False) -> dict:
    resources = {"CPU": cpus, "GPU": gpus} | ({HEAD_NODE_RESOURCE: 1.0} if head else {})
    return {"Resources": resources, "Labels": {} if pool is None else {"pool": pool}}


def test_cluster_size_includes_pending_nodes() -> None:
    head = _node(2.0, head=True)
    options = ["train.device=cuda", "cluster.num_workers=4", "cluster.autoscale_max_nodes=4"]
    config = load_config(options)
    size = cluster_size([head, _node(16.0, 4.0), _node(8.0, 4.0)], config.cluster)
    assert size.nodes == ((2.0, 0.0), (16.0, 4.0), (8.0, 4.0), (8.0, 4.0), (8.0, 4.0))
    assert "5 node(s), 2 of them pending," in str(size)
    assert max_concurrent_trials(config, size, 8) == 4
    assert (
        cluster_size([head, *[_node(8.0)] * 6], config.cluster).cpus == 50.0
    )  # more than the maximum
    with pytest.raises(
        UserError, match=r"cluster\.autoscale_max_nodes=4: the cluster has only its head"
    ):
        cluster_size([head], config.cluster)


def test_one_trial_can_train_if_no_pending_node_joins() -> None:
    """Its workers fit on the current nodes next to the rollout actors of all concurrent trials."""
    options = ["train.device=cuda", "cluster.autoscale_max_nodes=4"]
    config = load_config(options)
    size = cluster_size([_node(2.0, head=True), _node(16.0, 4.0)], config.cluster)
    trials = max_concurrent_trials(config, size, 100)
    run = allocate_run(config, size, trials)
    assert 4 < trials < 16
    assert trials * run.cpus_excluding_workers + run.cpus_per_worker <= 18.0


def test_each_pool_of_an_autoscaling_cluster_has_pending_nodes() -> None:
    config = load_config(["cluster.node_pool_label=pool", "cluster.autoscale_max_nodes=3"])
    nodes = [_node(2.0, head=True), _node(8.0, 2.0, "train"), _node(4.0, pool="sim")]
    size = cluster_size([*nodes, _node(1.0, pool="data")], config.cluster)
    assert [size.pool(pool).cpus for pool in POOLS] == [24.0, 12.0, 3.0]
    assert (size.cpus, size.gpus, size.pending) == (41.0, 6.0, 6)
    with pytest.raises(UserError, match="label pool=data"):
        cluster_size(nodes, config.cluster)


def test_elastic_run_is_allocated_for_its_current_workers() -> None:
    config = load_config(["train.device=cuda", "cluster.num_workers=2..16"])
    assert (config.cluster.min_workers, config.cluster.num_workers) == (2, 16)
    run = allocate_run(config, TWO_GPU_NODES)
    assert (run.min_workers, run.max_workers) == (2, 16) and run.is_elastic
    assert 8 * run.cpus_per_worker <= 32.0 and "2 to 16 worker(s)" in str(run)
    fixed = allocate_run(load_config(["cluster.num_workers=2"]), TWO_GPU_NODES)
    assert fixed.min_workers == fixed.max_workers == 2 and not fixed.is_elastic
    with pytest.raises(UserError, match=r"9 worker.* has 8"):
        allocate_run(load_config(["train.device=cuda", "cluster.num_workers=9..16"]), TWO_GPU_NODES)
    with pytest.raises(UserError, match=r"min_workers=3 must lie between 1 and .*num_workers=2"):
        load_config(["cluster.num_workers=3..2"])


@pytest.mark.parametrize(
    ("overrides", "arithmetic"),
    [
        (["train.device=cuda", "cluster.num_workers=9"], "9 worker.* x 1 GPU = 9 GPUs.* has 8"),
        (["train.device=cuda", "cluster.gpus_per_worker=5"], "has 8, enough for 0 such"),
        (
            ["train.device=cuda", "cluster.num_workers=2", "cluster.gpus_per_worker=0.5"],
            "trials can share a GPU, the workers of one run cannot",
        ),
        (
            ["train.device=cuda", "cluster.num_workers=1..4", "cluster.gpus_per_worker=0.5"],
            "cluster.num_workers=4: trials can share a GPU",
        ),
        (["evaluate.device=cuda"], "validation during training runs on CPUs"),
        (["cluster.cpus_per_worker=40"], "= 40.*CPUs, but the cluster has 32"),
        (["cluster.cpus_per_worker=20"], "0 of 1 worker.*20 CPU"),
    ],
)
def test_impossible_requests_are_refused_with_the_arithmetic(
    overrides: list[str], arithmetic: str
) -> None:
    with pytest.raises(UserError, match=arithmetic):
        allocate_run(load_config(overrides), TWO_GPU_NODES)
