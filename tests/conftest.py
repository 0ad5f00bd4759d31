"""Fixtures for all tests: one Ray cluster, and a small data set of real demonstrations."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from imf_ray.env_vars import prepare_environment

prepare_environment(own_cluster=True)  # before Ray or MuJoCo is imported

import hypothesis
import pytest
import torch

from tests.helpers.configs import DEMONSTRATIONS, LOGICAL_CPUS, LOGICAL_GPUS, tiny_config

hypothesis.settings.register_profile("no deadline", deadline=None)  # shared machines vary in speed
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """One torch thread: faster for small tensors, above all next to other busy processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def default_signal_handlers() -> None:
    """Python's own handlers: a caller such as nohup or a script's `&` lets signals be ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster with logical CPUs and GPUs, shared by the whole session."""
    import ray  # unit tests do without it

    # A socket path inside Ray's folder must not exceed 107 characters.
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
    """A data set of real demonstrations with 48 x 48 images; tests must not write to it."""
    from imf_ray.data.episodes import episode_path
    from imf_ray.data.hdf5.writing import write_episode
    from imf_ray.demos.recorder import DemoRecorder

    folder = tmp_path_factory.mktemp("demonstrations")
    config = tiny_config(folder)
    recorder = DemoRecorder(config.task, config.data.camera_names)
    for number in range(DEMONSTRATIONS):
        write_episode(episode_path(folder, number), recorder.record(seed=number))
    return folder


@pytest.fixture
def own_demonstrations(demonstrations: Path, tmp_path: Path) -> Path:
    """A copy of the demonstrations that a test may damage, without the cached index."""
    from imf_ray.data.source_files import CACHE_DIR

    unindexed = shutil.ignore_patterns(CACHE_DIR)
    return Path(shutil.copytree(demonstrations, tmp_path / "own", ignore=unindexed))
