"""Training on a Ray cluster: resume, failures, gradients of several ranks, checkpoints."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import pytest
import ray
import torch
from ray.train import RunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.placement_group import placement_group, remove_placement_group
from safetensors.torch import load_file

from imf_ray import checkpoint_dir
from imf_ray.agents.pretrained import CONFIG_FILE, EMA_WEIGHTS_FILE, WEIGHTS_FILE, load_agent
from imf_ray.allocation import RolloutResources, RunResources, allocate_run
from imf_ray.checkpoint_dir import VALIDATED_STEP, VALIDATION_ERROR, write_validation
from imf_ray.cluster import ClusterSize
from imf_ray.data.episodes import EpisodeFields
from imf_ray.data.pipeline import TrainDataset
from imf_ray.data.sampling import SamplePlan
from imf_ray.data.statistics import compute_statistics
from imf_ray.data.windows import window_spec_from_config
from imf_ray.errors import UserError
from imf_ray.folders import DATA_MANIFEST_FILE
from imf_ray.ray_internals import WorkerGroupCallback
from imf_ray.schema import Config, DataConfig
from imf_ray.training.checkpoint import load_train_state
from imf_ray.training.run_dir import DEPTH_WEIGHTS_FILE, RunDir
from imf_ray.training.run_identity import init_or_verify_run_dir
from imf_ray.training.train_state import TrainState, to_tensors
from imf_ray.training.trainer import fit, prepare_run, scaling_config
from imf_ray.yaml_text import dump_yaml, plain, read_yaml
from tests.helpers import faulty_envs
from tests.helpers.configs import LOGICAL_CPUS, LOGICAL_GPUS, tiny_config

TIMEOUT_S = 300.0
SIZE = ClusterSize(((float(LOGICAL_CPUS), float(LOGICAL_GPUS)),))
pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_run_trains_validates_and_resumes_bitwise(demonstrations: Path, tmp_path: Path) -> None:
    options = (
        "train.save_freq=2",
        "train.rollout_val_freq_epochs=1000",
        "train.diagnostics_freq=2",
        "task.max_episode_steps=60",
    )
    config = tiny_config(demonstrations, *options)
    resources = allocate_run(config, SIZE)
    whole = fit(prepare_run(config), RunDir(tmp_path / "whole"), resources)
    assert not whole.stopped
    metrics = RunDir(tmp_path / "whole").list_checkpoints()[-1].metrics
    assert metrics["step"] == 4 and 0.0 <= metrics["rollout/success_rate"] <= 1.0
    assert metrics["rollout/episodes"] == 2 and metrics["action_error"] > 0.0
    assert metrics["rollout/success_ci_low"] <= metrics["rollout/success_rate"]
    (records,) = tmp_path.glob("whole/evaluations/checkpoint_00000004-*/episodes.jsonl")
    assert records.read_text().count("\n") == 2

    # The state of a run that was killed after it wrote its first checkpoint and before it reported
    # the checkpoint to Ray. The resumed run reports that checkpoint, too.
    half = tmp_path / "half"
    half.mkdir()
    shutil.copytree(tmp_path / "whole/checkpoint_00000002", half / "checkpoint_00000002")
    (half / "checkpoint_manager_snapshot.json").write_text("cut o")
    (half / ".partial_00000003").mkdir()
    # Meanwhile the data set was copied, and its files were renamed in the same order.
    moved = tmp_path / "moved"
    moved.mkdir()
    for number, source in enumerate(sorted(demonstrations.glob("*.hdf5"))):
        shutil.copyfile(source, moved / f"Episode{number + 7:03}.h5")
    for name in (CONFIG_FILE, DATA_MANIFEST_FILE):
        shutil.copy(tmp_path / "whole" / name, half)
    config = tiny_config(moved, *options)
    fit(prepare_run(config), RunDir(half), resources)
    assert RunDir(half).read_config()["data"]["dataset_dir"] == str(moved)
    (val_episode,) = RunDir(half).find_val_episodes(DataConfig(str(demonstrations)))
    assert Path(val_episode.path).parent == moved
    assert not (half / ".partial_00000003").exists()
    assert [checkpoint.step for checkpoint in RunDir(half).list_checkpoints()] == [2, 4]
    best = RunDir(half).best_checkpoint()
    assert best.metrics["rollout/success_rate"] == metrics["rollout/success_rate"]
    for name in (WEIGHTS_FILE, EMA_WEIGHTS_FILE):
        expected = load_file(tmp_path / "whole/checkpoint_00000004" / name)
        resumed = load_file(half / "checkpoint_00000004" / name)
        assert all(torch.equal(expected[key], resumed[key]) for key in expected)

    log = [json.loads(line) for line in (half / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == [3, 4]
    assert [line["step"] for line in log if "validated" in line] == [4]
    assert all(0.0 <= line["grad_clip_frac"] <= 1.0 for line in log if "loss" in line)
    diagnosed = [line for line in log if any(key.startswith("velocity_error/") for key in line)]
    assert [line["step"] for line in diagnosed] == [4]
    assert (half / DEPTH_WEIGHTS_FILE).is_file()

    changed = tiny_config(demonstrations, "train.lr=1e-2", "train.compile=true")
    with pytest.raises(UserError, match=r"other settings: .*train.lr was .*train.compile was"):
        fit(prepare_run(changed), RunDir(half), resources)
    settings = plain(read_yaml(half / CONFIG_FILE))
    del settings["train"]["encoder_precision"]  # as in a run that is older than the option
    (half / CONFIG_FILE).write_text(dump_yaml(settings))
    init_or_verify_run_dir(prepare_run(config), RunDir(half))


@pytest.mark.slow
def test_a_run_waits_for_resources_without_a_time_limit(
    demonstrations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("imf_ray.training.trainer.CONTROLLER_FAILURE_LIMIT", 0)
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    reserved = placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    assert reserved.wait(TIMEOUT_S)

    def release_late() -> None:
        until = time.monotonic() + TIMEOUT_S
        while caplog.text.count("waits for resources") < 2 and time.monotonic() < until:
            time.sleep(0.1)
        remove_placement_group(reserved)

    releaser = threading.Thread(target=release_late)
    releaser.start()
    config = tiny_config(demonstrations, "train.max_steps=1", "train.max_failures=0")
    fit(prepare_run(config), RunDir(tmp_path / "run"), allocate_run(config, SIZE))
    releaser.join()
    assert caplog.text.count("waits for resources") >= 2


@pytest.mark.parametrize(
    "victim",
    [
        "worker",
        pytest.param("controller", marks=pytest.mark.slow),
        pytest.param("controller before its workers", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_dies_while_workers_start_leaks_no_placement_group(
    demonstrations: Path, tmp_path: Path, victim: str
) -> None:
    kill_marker = str(tmp_path / "killed")

    class Kill(WorkerGroupCallback):
        def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
            self._kill("controller before its workers", os.getpid())
            return {}

        def after_worker_group_start(self, worker_group: Any) -> None:
            self._kill("worker", worker_group.get_workers()[0].metadata.pid)
            self._kill("controller", os.getpid())

        def _kill(self, role: str, pid: int) -> None:
            if role == victim and not Path(kill_marker).exists():
                Path(kill_marker).touch()
                os.kill(pid, signal.SIGKILL)

    def placement_groups() -> set[str]:
        table = ray.util.placement_group_table()
        return {key for key, group in table.items() if group["state"] != "REMOVED"}

    before = placement_groups()
    config = tiny_config(demonstrations, "train.max_steps=2", "train.max_failures=1")
    fit(prepare_run(config), RunDir(tmp_path / "run"), allocate_run(config, SIZE), [Kill()])
    assert Path(kill_marker).exists()
    assert placement_groups() == before


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [faulty_envs.ENV_ID, faulty_envs.MADE_IN_DRIVER])
def test_failures_of_rollout_actors_do_not_stop_training(
    demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env_id: str
) -> None:
    """An actor that raises, dies or hangs loses its episode. Without actors, validation fails."""
    monkeypatch.setattr(faulty_envs, "is_driver", True)
    data = tmp_path / "data"
    data.mkdir()
    for source in demonstrations.glob("*.hdf5"):
        shutil.copy(source, data)
        with h5py.File(data / source.name, "r+") as file:  # their task is not the faulty one
            for name in list(file.attrs):
                del file.attrs[name]
    config = tiny_config(
        data,
        f"task.env_id={env_id}",
        "task.max_episode_steps=20",
        f"train.rollout_seed={faulty_envs.RAISES - 1}",  # this episode has no fault
        f"train.rollout_num_episodes={faulty_envs.HANGS - faulty_envs.RAISES + 2}",
        "train.rollout_validate_on_checkpoint=true",
        "train.save_freq=2",
        "train.max_failures=0",
        "evaluate.episode_timeout_s=5",
    )
    outcome = fit(prepare_run(config), RunDir(tmp_path / "run"), allocate_run(config, SIZE))
    assert not outcome.stopped
    assert [c.step for c in RunDir(tmp_path / "run").list_checkpoints()] == [2, 4]
    validations = [line for line in RunDir(tmp_path / "run").read_metrics() if "validated" in line]
    assert [line["step"] for line in validations] == [2, 4]
    for line in validations:
        if env_id == faulty_envs.MADE_IN_DRIVER:
            assert "the scene is missing" in line[VALIDATION_ERROR]
        else:
            assert (line["rollout/episodes"], line["rollout/failed"]) == (6, 5)
            assert VALIDATION_ERROR not in line
    if env_id == faulty_envs.MADE_IN_DRIVER:  # a resumed run validates them again
        fit(prepare_run(config), RunDir(tmp_path / "run"), allocate_run(config, SIZE))
        validations = RunDir(tmp_path / "run").read_validations()
        assert [validation[VALIDATED_STEP] for validation in validations] == [2, 4] * 2


def test_a_file_that_changes_during_training_ends_it_with_one_message(
    demonstrations: Path, tmp_path: Path
) -> None:
    shutil.copytree(demonstrations, tmp_path / "data")
    config = tiny_config(tmp_path / "data", "train.max_failures=0")
    run = prepare_run(config)
    for episode in run.train.episodes:
        content = Path(episode.path).read_bytes()
        Path(episode.path).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"^Training stopped: Episode .*episode_\d.hdf5 cannot be"):
        fit(run, RunDir(tmp_path / "run"), allocate_run(config, SIZE))


def test_gradients_are_averaged_over_ranks(demonstrations: Path, tmp_path: Path) -> None:
    options = ("train.batch_size=16", "train.grad_clip=1e9")
    one, two = (
        _first_gradients(
            tiny_config(demonstrations, *options, f"train.gradient_accumulation_steps={steps}"),
            num_workers,
            tmp_path,
        )
        for num_workers, steps in ((1, 1), (2, 2))
    )
    assert one.keys() == two.keys() and len(one) > 20
    scale = max(float(g.abs().max()) for g in one.values())
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=name)
    difference = sum(float((two[n] - one[n]).square().sum()) for n in one) ** 0.5
    assert difference <= 1e-5 * sum(float(g.square().sum()) for g in one.values()) ** 0.5


def _first_gradients(config: Config, num_workers: int, folder: Path) -> dict[str, torch.Tensor]:
    """Compute the gradients of the first global batch with Ray Train and this many workers."""
    run = prepare_run(dataclasses.replace(config))
    spec = window_spec_from_config(config)
    episodes = tuple(episode.ref for episode in run.train.episodes)
    frame_bytes = len(spec.fields.cameras) * 3 * config.task.image_size**2
    dataset = TrainDataset(run.plan, spec, episodes, frame_bytes, max_steps=1, read_concurrency=1)
    statistics = compute_statistics(run.train.episodes, spec.fields)
    gradients_path = str(folder / f"gradients_{num_workers}.pt")

    def loop(train_loop_config: dict[str, Any]) -> None:
        import ray.train

        context = ray.train.get_context()
        rank, world_size = context.get_world_rank(), context.get_world_size()
        state = TrainState(config, statistics, torch.device("cpu"))
        state.distribute()
        (batch,) = dataset.batches(rank, world_size, 0)
        state.update(to_tensors(batch, config, 0, state.device, world_size))
        if rank == 0:
            gradients = {
                name: p.grad for name, p in state.agent.named_parameters() if p.grad is not None
            }
            torch.save(gradients, gradients_path)

    TorchTrainer(
        loop,
        train_loop_config={},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=scaling_config(
            RunResources(num_workers, num_workers, 0.5, 0.0, RolloutResources(1, 0.5))
        ),
        run_config=RunConfig(name=f"gradients_{num_workers}", storage_path=str(folder)),
    ).fit()
    return torch.load(gradients_path, weights_only=True)


@pytest.mark.slow
def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(
    demonstrations: Path, tmp_path: Path
) -> None:
    config = tiny_config(demonstrations, "train.max_steps=2", "train.save_freq=1")
    resources = allocate_run(config, SIZE)
    fit(prepare_run(config), RunDir(tmp_path), resources)
    weights = tmp_path / "checkpoint_00000002" / WEIGHTS_FILE
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    fit(prepare_run(config), RunDir(tmp_path), resources)
    assert weights.read_bytes() == original
    lines = RunDir(tmp_path).read_metrics()
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 2]
    launches = [line for line in lines if "restarts" in line]
    assert [line["invalid_checkpoints_skipped"] for line in launches] == [0, 1]


def test_a_damaged_checkpoint_is_skipped(
    demonstrations: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config(demonstrations)
    state, plan = _local_state(config)
    for step in (1, 2, 3):
        state.step = step
        state.save(RunDir(tmp_path), {}, plan)
    assert RunDir(tmp_path).newest_checkpoint().step == 3
    weights = tmp_path / "checkpoint_00000003" / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1])
    for _ in range(2):
        assert RunDir(tmp_path).newest_checkpoint().step == 2
    assert caplog.text.count("Skipped") == 1
    (tmp_path / "checkpoint_00000002" / "manifest.json").rename(tmp_path / "manifest.json")
    assert RunDir(tmp_path).newest_checkpoint().step == 1
    (tmp_path / "manifest.json").rename(tmp_path / "checkpoint_00000002" / "manifest.json")

    errors = [OSError(errno.EIO, "Input/output error")]
    file_digest = checkpoint_dir.file_digest

    def failing_digest(path: Path) -> str:
        if errors:
            raise errors.pop()
        return file_digest(path)

    monkeypatch.setattr(checkpoint_dir, "file_digest", failing_digest)
    monkeypatch.setattr("imf_ray.files.RETRY_DELAYS_S", (0.0,))
    assert RunDir(tmp_path).newest_checkpoint().step == 2  # a disk error is retried
    (tmp_path / "checkpoint_00000002" / "manifest.json").unlink()
    newest = RunDir(tmp_path).newest_checkpoint()
    assert newest.step == 1
    load_agent(newest.path)


def test_pruning_keeps_the_newest_the_best_and_the_pending(
    demonstrations: Path, tmp_path: Path
) -> None:
    state, plan = _local_state(tiny_config(demonstrations))
    for step in range(1, 6):
        state.step = step
        path = state.save(RunDir(tmp_path), {}, plan).path
        if step in (1, 2):
            write_validation(path, {"rollout/success_rate": 1.0 - 0.1 * step})
    RunDir(tmp_path).prune_checkpoints(2, pending=lambda step: step == 3)
    assert [checkpoint.step for checkpoint in RunDir(tmp_path).list_checkpoints()] == [1, 3, 4, 5]
    RunDir(tmp_path).prune_checkpoints(2, pending=lambda step: False)
    assert [checkpoint.step for checkpoint in RunDir(tmp_path).list_checkpoints()] == [1, 4, 5]


def test_a_checkpoint_contains_its_position_in_the_data(
    demonstrations: Path, tmp_path: Path
) -> None:
    state, plan = _local_state(tiny_config(demonstrations))
    state.step = plan.steps_per_epoch + 2
    saved = state.save(RunDir(tmp_path), {}, plan)
    position = load_train_state(saved.path, "cpu")["position"]
    assert (position["epoch"], position["batch"]) == (1, 2)
    state.restore(saved, plan)
    for other_plan in (
        dataclasses.replace(plan, virtual_shards=1),
        dataclasses.replace(plan, lengths=(plan.lengths[0] + 1, *plan.lengths[1:])),
    ):
        assert other_plan != plan
        with pytest.raises(UserError, match=f"{saved.path.name} was saved at .* of two runs"):
            state.restore(saved, other_plan)


def _local_state(config: Config) -> tuple[TrainState, SamplePlan]:
    """Make the train state and the sample plan of a run in this process."""
    run = prepare_run(config)
    statistics = compute_statistics(run.train.episodes, EpisodeFields())
    return TrainState(config, statistics, torch.device("cpu")), run.plan
