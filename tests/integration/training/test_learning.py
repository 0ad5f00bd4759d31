"""Training without a cluster: an agent overfits two episodes and is saved without a change."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from imf_ray.agents.base import VLAAgent
from imf_ray.agents.pretrained import load_policy_config, save_agent
from imf_ray.data.episodes import EpisodeFields, EpisodeRef, EpisodeSlice
from imf_ray.data.statistics import compute_statistics
from imf_ray.data.windows import (
    Batch,
    WindowBatcher,
    sample_windows,
    window_spec_from_config,
)
from imf_ray.schema import Config
from imf_ray.training.action_error import measure_action_errors
from imf_ray.training.run_identity import PreparedRun
from imf_ray.training.train_state import TrainState, to_tensors
from imf_ray.training.trainer import prepare_run
from tests.helpers.configs import tiny_config

STEPS = 300


def test_an_agent_overfits_two_episodes(demonstrations: Path, tmp_path: Path) -> None:
    config = tiny_config(
        demonstrations,
        f"train.max_steps={STEPS}",
        "train.batch_size=32",
        "train.lr=3e-3",
        "train.warmup_steps=50",
        "agent.head.n_emb=64",
        "agent.time_sampler=uniform",
    )
    run = prepare_run(config)
    assert len(run.train.episodes) == 2
    episodes = [episode.ref for episode in run.train.episodes]
    statistics = compute_statistics(run.train.episodes, EpisodeFields())
    state = TrainState(config, statistics, torch.device("cpu"))

    def current_error() -> float:
        folder = tmp_path / f"step_{state.step}"
        folder.mkdir()
        save_agent(folder, state.agent, config, state.ema.state)
        return measure_action_errors(folder, episodes).normalized

    before = current_error()
    for batch in _batches(run, config):
        epoch = state.step // run.plan.steps_per_epoch
        state.update(to_tensors(batch, config, epoch, state.device))
    after = current_error()
    assert after <= before / 10.0, f"{before:.4f} -> {after:.4f}"
    _assert_same_in_a_new_process(state.agent, tmp_path / f"step_{STEPS}", episodes)


def _batches(run: PreparedRun, config: Config) -> Iterator[Batch]:
    """Read the batches of a run in this process."""
    spec, plan = window_spec_from_config(config), run.plan

    def segments() -> Iterator[tuple[int, int, EpisodeSlice]]:
        for epoch, indices in plan.rank_segments(0, 1, 0, config.train.max_steps):
            epoch_plan = plan.epoch(epoch)
            for index in indices:
                episode = run.train.episodes[epoch_plan.episode[index]]
                start, stop = int(epoch_plan.start[index]), int(epoch_plan.stop[index])
                yield epoch, int(index), spec.read(episode.ref, start, stop)

    return WindowBatcher(plan, spec, 0, 1).batches(segments(), 0, config.train.max_steps)


PREDICT = """
import json, sys, torch
from pathlib import Path
from imf_ray.agents.pretrained import load_agent
from imf_ray.data.episodes import EpisodeRef
from imf_ray.data.windows import sample_windows, window_spec_from_config
torch.set_num_threads(1)
agent, config = load_agent(Path(sys.argv[1]), ema=False)
episodes = [EpisodeRef(**row) for row in json.loads(sys.argv[2])]
windows = sample_windows(episodes, window_spec_from_config(config), 4, seed=3)
observation = {
    "images": {name: torch.from_numpy(v) for name, v in windows["images"].items()},
    "qpos": torch.from_numpy(windows["qpos"]),
}
actions = agent.predict_action(observation, generator=torch.Generator().manual_seed(5))
print(actions.numpy().tobytes().hex())
"""


def _assert_same_in_a_new_process(
    agent: VLAAgent, folder: Path, episodes: list[EpisodeRef]
) -> None:
    """Check that a new process loads the saved agent and predicts bitwise the same actions."""
    command = [
        sys.executable,
        "-c",
        PREDICT,
        str(folder),
        json.dumps([asdict(e) for e in episodes]),
    ]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    windows = sample_windows(
        episodes, window_spec_from_config(load_policy_config(folder)), 4, seed=3
    )
    observation = {
        "images": {name: torch.from_numpy(frames) for name, frames in windows["images"].items()},
        "qpos": torch.from_numpy(windows["qpos"]),
    }
    actions = agent.eval().predict_action(observation, generator=torch.Generator().manual_seed(5))
    assert bytes.fromhex(output.strip()) == actions.numpy().tobytes()
