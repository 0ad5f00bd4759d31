"""Shared fixtures: one Ray cluster for all tests, and small real demonstrations."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from imf_ray.env_vars import prepare_environment

prepare_environment(own_cluster=True)  # before anything imports Ray or MuJoCo

import hypothesis
import pytest
import ray
import torch

from imf_ray.data.hdf5 import CACHE_DIR
from tests.helpers.configs import DEMONSTRATIONS, LOGICAL_CPUS, LOGICAL_GPUS, tiny_config

hypothesis.settings.register_profile("any machine", deadline=None)  # time is not what tests ask
hypothesis.settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors are faster on one thread, above all beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster with logical CPUs and GPUs, for the whole test session."""
    # The socket paths inside Ray's folder are limited to 107 characters.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=LOGICAL_CPUS,
        num_gpus=LOGICAL_GPUS,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=folder,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of a few real demonstrations with 48 x 48 pictures; do not write to it."""
    from imf_ray.data.episodes import episode_path, write_episode
    from imf_ray.demos.recorder import DemoRecorder

    folder = tmp_path_factory.mktemp("demonstrations")
    config = tiny_config(folder)
    recorder = DemoRecorder(config.task, config.data.camera_names)
    for number in range(DEMONSTRATIONS):
        write_episode(episode_path(folder, number), recorder.record(seed=number))
    return folder


@pytest.fixture
def own_demonstrations(demonstrations: Path, tmp_path: Path) -> Path:
    """A copy of the demonstrations that a test may damage."""
    unindexed = shutil.ignore_patterns(CACHE_DIR)
    return Path(shutil.copytree(demonstrations, tmp_path / "own", ignore=unindexed))
