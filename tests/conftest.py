"""Shared fixtures: one Ray cluster for all tests, and small real demonstrations."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from imf_ray.environment import prepare_environment

prepare_environment(own_cluster=True)  # before anything imports Ray or MuJoCo

import hypothesis
import pytest
import ray
import torch

from imf_ray.agents.pretrained import build_agent
from imf_ray.agents.vla import VLAAgent
from imf_ray.config import load_config
from imf_ray.data.episodes import Selection
from imf_ray.data.index import build_index
from imf_ray.data.statistics import compute_statistics
from imf_ray.data.storage import CACHE_DIR
from imf_ray.schema import Config

COMMAND_LIMIT_S = 1200
"""What takes longer hangs; a neighbour may take nine tenths of a shared machine for a while."""
LOGICAL_CPUS, LOGICAL_GPUS = 4, 2
DEMONSTRATIONS = 3

hypothesis.settings.register_profile("any machine", deadline=None)  # time is not what tests ask
hypothesis.settings.load_profile("any machine")

TINY_AGENT = (
    "agent.vision_backbone.stage_widths=[8,8,16,16]",
    "agent.vision_backbone.blocks_per_stage=[1,1,1,1]",
    "agent.vision_backbone.num_keypoints=8",
    "agent.head.n_emb=32",
    "agent.head.n_layer=2",
    "agent.head.n_head=2",
    "agent.head.n_kv_head=1",
)
TINY_TRAINING = (
    "train.batch_size=8",
    "train.max_steps=4",
    "train.warmup_steps=1",
    "train.log_freq=1",
    "train.num_workers=1",
    "train.rollout_num_episodes=2",
    "train.val_split=0.34",
    "task.image_size=48",
    "task.max_episode_steps=400",
    "cluster.dashboard=false",
)


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
    from imf_ray.demos.recorder import Recorder

    folder = tmp_path_factory.mktemp("demonstrations")
    config = tiny_config(folder)
    recorder = Recorder(config.task, config.data.camera_names)
    for number in range(DEMONSTRATIONS):
        write_episode(episode_path(folder, number), recorder.record(seed=number))
    return folder


@pytest.fixture
def own_demonstrations(demonstrations: Path, tmp_path: Path) -> Path:
    """A copy of the demonstrations that a test may damage."""
    unindexed = shutil.ignore_patterns(CACHE_DIR)
    return Path(shutil.copytree(demonstrations, tmp_path / "own", ignore=unindexed))


def tiny_config(dataset_dir: Path | str, *overrides: str) -> Config:
    """The smallest real configuration: three cameras, a residual trunk, an AttnRes head."""
    return load_config(
        [
            "agent=resnet_imf_attnres_multitoken",
            *TINY_AGENT,
            *TINY_TRAINING,
            f"data.dataset_dir={dataset_dir}",
            *overrides,
        ]
    )


def fresh_agent(config: Config, seed: int = 0) -> VLAAgent:
    """An agent with fresh weights, normalized by the configuration's data."""
    index = build_index(config)
    torch.manual_seed(seed)
    selection = Selection(objects=config.agent.recorded_objects)
    stats = compute_statistics(index.episodes, selection)
    return build_agent(config.agent, config.task.action_space, stats)


def run_command(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`python -m imf_ray.MODULE` in a process and a cluster of its own, as a user types it."""
    return subprocess.run(
        [sys.executable, "-m", f"imf_ray.{module}", *arguments],
        cwd=cwd,
        env=command_environment(),
        capture_output=True,
        text=True,
        timeout=COMMAND_LIMIT_S,
    )


def begin_command(module: str, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """The same under way; what it prints is dropped, but for its errors."""
    return subprocess.Popen(
        [sys.executable, "-m", f"imf_ray.{module}", *arguments],
        cwd=cwd,
        env=command_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def command_environment() -> dict[str, str]:
    """What the package's commands find: this checkout, and no cluster."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    environment.pop("RAY_ADDRESS", None)
    return environment
