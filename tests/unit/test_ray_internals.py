"""The private parts of Ray: a test for each that a new version may change."""

from __future__ import annotations

import inspect
import logging
from collections import deque
from types import SimpleNamespace

import pytest
import ray
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from ray.train import FailureConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import preemption_callback
from ray.train.v2._internal.execution.worker_group import worker_group
from ray.train.v2.api import data_parallel_trainer
from ray.tune.trainable import FunctionTrainable, wrap_function

from imf_ray import ray_internals
from imf_ray.errors import UserError
from tests.helpers import REPO_ROOT

PRIVATE = (
    "._internal",
    "ray._private",
    "ray.core.generated",
    "._output_node",
    "_default_callbacks",
)


def test_no_other_module_uses_private_parts_of_ray() -> None:
    for path in (REPO_ROOT / "imf_ray").rglob("*.py"):
        if path.name != "ray_internals.py":
            used = [name for name in PRIVATE if name in path.read_text()]
            assert not used, f"{path} uses {used}: move it to ray_internals.py"


def test_the_installed_version_of_ray_is_the_tested_one() -> None:
    assert ray.__version__.startswith(f"{ray_internals.RAY_VERSION}.")


def test_another_version_of_ray_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        ray_internals.check_ray_version()
        assert not caplog.records
        monkeypatch.setattr(ray, "__version__", "2.61.0")
        ray_internals.check_ray_version()
    assert "Ray 2.61.0 is installed" in caplog.text


@pytest.mark.parametrize("name", ray_internals.PRIVATE_CLASSES)
def test_the_private_classes_exist(name: str) -> None:
    assert inspect.isclass(getattr(ray_internals, name))


def test_a_missing_class_is_an_error_that_names_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ray_internals.PRIVATE_CLASSES, "Gone", "ray.train")
    with pytest.raises(UserError, match=r"has no ray.train.Gone, .* Install ray==2"):
        ray_internals.Gone  # noqa: B018
    with pytest.raises(AttributeError):
        ray_internals.no_such_name  # noqa: B018


def test_the_hooks_that_are_overridden_exist() -> None:
    """The signatures are those that this package implements or calls."""
    parameters = {
        "ExecutionCallback.on_execution_step": ["self", "executor"],
        "DefaultFailurePolicy.make_decision": ["self", "training_failed_error"],
        "WorkerGroupCallback.before_worker_group_start": ["self", "worker_group_context"],
        "WorkerGroupCallback.after_worker_group_poll_status": ["self", "worker_group_status"],
    }
    for name, expected in parameters.items():
        kind, _, method = name.partition(".")
        signature = inspect.signature(getattr(getattr(ray_internals, kind), method))
        assert list(signature.parameters) == expected, name
    assert {"RETRY", "RAISE"} <= set(ray_internals.FailureDecision.__members__)


def test_a_start_up_timeout_has_the_number_of_workers() -> None:
    assert ray_internals.WorkerGroupStartupTimeoutError(3).num_workers == 3


def test_worker_failures_are_counted_where_we_reset_them() -> None:
    policy = ray_internals.DefaultFailurePolicy(FailureConfig(max_failures=2))
    policy._worker_group_failures += 1
    ray_internals.reset_failure_count(policy)
    assert policy._worker_group_failures == 0


def test_a_trainer_runs_with_our_policy_and_without_rays_cleaner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passed: dict[str, object] = {}
    monkeypatch.setattr(
        TorchTrainer, "_initialize_and_run_controller", lambda self, **kwargs: passed.update(kwargs)
    )
    source = inspect.getsource(TorchTrainer.fit)
    assert "self._initialize_and_run_controller(" in source and "failure_policy=" in source
    trainer = TorchTrainer(print)
    cleaner = ray_internals.PlacementGroupCleanerCallback
    assert any(isinstance(c, cleaner) for c in trainer._create_default_callbacks())
    ray_internals.remove_default_callback(trainer, "PlacementGroupCleanerCallback")
    callbacks = trainer._create_default_callbacks()
    assert callbacks and not any(isinstance(c, cleaner) for c in callbacks)
    monkeypatch.setattr(data_parallel_trainer, "TrainController", None)  # restored at the end
    ray_internals.configure_controller(trainer, "ours", "03")
    trainer._initialize_and_run_controller(failure_policy="Ray's", other=1)
    assert passed == {"failure_policy": "ours", "other": 1}
    controller = data_parallel_trainer.TrainController
    assert controller.__name__ == "TrainController"
    assert repr(controller.__new__(controller)) == "controller of 03"


def test_the_output_queue_of_an_executor() -> None:
    assert "self._output_node" in inspect.getsource(StreamingExecutor)
    output = SimpleNamespace(output_queue=deque([1, 2]))
    executor = SimpleNamespace(_output_node=(None, output))
    assert ray_internals.num_queued_outputs(executor) == 2


def test_the_actors_of_a_run_say_their_run_and_role(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in (
        (worker_group.WorkerGroup, "_worker_cls"),
        (worker_group, "SynchronizationActor"),
        (preemption_callback, "PreemptionWatcher"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # restored at the end
        assert name in inspect.getsource(inspect.getmodule(owner))
    core_worker = SimpleNamespace(
        resource_ids=lambda: {"CPU_group_3_12ab": [], "CPU_group_12ab": []}
    )
    global_worker = "ray._private.worker.global_worker"
    monkeypatch.setattr(f"{global_worker}.core_worker", core_worker, raising=False)
    for _ in range(2):  # the second time, the workers are started again
        ray_internals.label_train_actors("00-n_emb=96")
    synchronization = worker_group.SynchronizationActor
    assert synchronization._default_options == {"num_cpus": 0}
    labels = {
        actor.__name__: (repr(actor.__new__(actor)), actor.__mro__[1].__name__)
        for actor in (
            worker_group.WorkerGroup._worker_cls,
            synchronization.__ray_metadata__.modified_class.__ray_actor_class__,
            preemption_callback.PreemptionWatcher,
        )
    }
    assert labels["RayTrainWorker"] == ("training worker 3 of 00-n_emb=96", "RayTrainWorker")
    assert labels["SynchronizationActor"][0] == "synchronization of 00-n_emb=96"
    assert labels["PreemptionWatcher"][0] == "preemption watcher of 00-n_emb=96"


def test_the_actor_of_a_trial_says_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def trainable(params: dict[str, str]) -> None: ...

    monkeypatch.setattr(FunctionTrainable, "setup", lambda self, config: None)
    ray_internals.label_trials(trainable, "trial")
    actor_class = wrap_function(trainable)
    actor = actor_class.__new__(actor_class)
    actor.setup({"trial": "00-n_emb=96"})
    assert repr(actor) == "trial 00-n_emb=96" and actor_class.__qualname__ == "Trial"


def test_the_actors_that_all_runs_share_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    for path in (
        "ray.train.v2._internal.state.state_actor.get_or_create_state_actor",
        "ray.data._internal.stats.get_or_create_stats_actor",
        "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator."
        "get_or_create_autoscaling_coordinator",
    ):
        monkeypatch.setattr(path, lambda path=path: started.append(path))
    ray_internals.start_shared_actors()
    assert len(started) == 3


@pytest.mark.parametrize(("url", "waits"), [(None, []), ("127.0.0.1:8265", [2.0])])
def test_calls_are_waited_for_only_if_a_dashboard_counts_them(
    url: str | None, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(ray_internals, "dashboard_url", lambda: url)
    monkeypatch.setattr(ray_internals.time, "sleep", slept.append)
    ray_internals.wait_for_task_events()
    assert slept == waits
