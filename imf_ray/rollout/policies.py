"""Policies that act in episodes: agents, scripted experts and replays of recorded episodes."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from imf_ray.agents.action_queue import ActionQueue
from imf_ray.agents.base import VLAAgent
from imf_ray.agents.pretrained import (
    POLICY_FILES,
    load_agent,
    load_policy_config,
    make_untrained_agent,
    weights_digest,
)
from imf_ray.data.episode_files import require_episodes
from imf_ray.data.episodes import whole_number
from imf_ray.data.index import check_dataset
from imf_ray.data.readers import read_actions
from imf_ray.errors import UserError
from imf_ray.rollout.policy_fit import PolicyNeeds, agent_needs
from imf_ray.rollout.policy_spec import EXPERT, PolicyKind, PolicySpec
from imf_ray.rollout.rollout_config import RolloutConfig
from imf_ray.rollout.timing import Timer
from imf_ray.schema import Config
from imf_ray.sim.base import ScriptedExpert, SimEnv
from imf_ray.sim.factory import check_has_expert, make_expert
from imf_ray.storage import download


class EpisodePolicy(Protocol):
    """The state of a policy in one episode.

    In each control step, `observe` and then `act` are called. If `needs_prediction` is true in
    between, `Policy.predict_chunks` is called first.
    """

    @property
    def needs_images(self) -> bool:
        """True if the next observation must contain images."""

    @property
    def needs_prediction(self) -> bool:
        """True if `Policy.predict_chunks` must be called before `act`."""

    def observe(self, observation: dict[str, Any]) -> None:
        """Add the observation of this control step."""

    def act(self) -> np.ndarray:
        """Return the action (action_dim,) of this control step."""


class Policy(Protocol):
    """A policy that acts in several episodes at a time."""

    name: str
    """Identifier in records."""

    def start_episode(self, env: SimEnv, seed: int) -> EpisodePolicy:
        """Start an episode in `env`, which was just reset with `seed`."""

    def predict_chunks(self, episodes: Sequence[Any], timers: Sequence[Timer]) -> None:
        """Predict the next action chunk of each of these episodes.

        Args:
            episodes: episodes whose `needs_prediction` is true.
            timers: the timer of each episode.
        """


class AgentEpisode:
    """The observations and the action queue of an agent in one episode."""

    def __init__(self, queue: ActionQueue, noise_seed: int, seed: int) -> None:
        self.queue = queue
        self._noise_key = [noise_seed, seed]
        self._num_chunks = 0

    @property
    def needs_images(self) -> bool:
        return self.queue.needs_images

    @property
    def needs_prediction(self) -> bool:
        return self.queue.needs_prediction

    def observe(self, observation: dict[str, Any]) -> None:
        self.queue.add_observation(observation)

    def act(self) -> np.ndarray:
        return self.queue.pop_action().numpy()

    def next_noise(self, shape: tuple[int, int]) -> torch.Tensor:
        """Draw the noise (pred_horizon, action_dim) of the next chunk.

        The noise depends only on the noise seed, the episode's seed and the number of the chunk.
        """
        rng = np.random.default_rng([*self._noise_key, self._num_chunks])
        self._num_chunks += 1
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


class AgentPolicy:
    """Acts with one agent in all episodes of a process.

    Every call of the agent has a batch of `inference_batch_size` rows, one per episode. Missing
    rows are filled with copies of the last one. So the result of a row does not depend on the
    number of episodes that need a chunk.
    """

    def __init__(self, agent: VLAAgent, name: str, config: RolloutConfig) -> None:
        assert config.num_action_steps is not None
        self.name = name
        self._agent = agent.eval()
        self._config = config
        self._num_action_steps = config.num_action_steps
        self._device = next(agent.parameters()).device

    def start_episode(self, env: SimEnv, seed: int) -> AgentEpisode:
        queue = ActionQueue(self._agent.obs_horizon, self._num_action_steps)
        return AgentEpisode(queue, self._config.noise_seed, seed)

    def predict_chunks(self, episodes: Sequence[AgentEpisode], timers: Sequence[Timer]) -> None:
        size = self._config.inference_batch_size
        for start in range(0, len(episodes), size):
            rows = slice(start, start + size)
            self._predict_batch(episodes[rows], timers[rows])

    def _predict_batch(self, episodes: Sequence[AgentEpisode], timers: Sequence[Timer]) -> None:
        """Predict the chunks of at most `inference_batch_size` episodes in one call."""
        padding = self._config.inference_batch_size - len(episodes)
        rows = [*range(len(episodes)), *[len(episodes) - 1] * padding]
        with Timer.split(timers, "preprocess_ms"):
            windows = [episode.queue.observation_window() for episode in episodes]
            batch = _stack([windows[row] for row in rows], self._device)
            shape = (self._agent.pred_horizon, self._agent.action_dim)
            noises = [episode.next_noise(shape) for episode in episodes]
            noise = torch.stack([noises[row] for row in rows]).to(self._device)
        with Timer.split(timers, "inference_ms", total_name="call_ms"):
            chunks = self._agent.predict_action(batch, noise=noise).cpu()
        for episode, chunk in zip(episodes, chunks, strict=False):
            episode.queue.add_chunk(chunk)


def _stack(windows: Sequence[Any], device: torch.device) -> Any:
    """Stack tensors, or dictionaries of tensors key by key, along a new batch axis."""
    if isinstance(windows[0], torch.Tensor):
        return torch.stack(list(windows)).to(device)
    return {key: _stack([window[key] for window in windows], device) for key in windows[0]}


class OpenLoopEpisode:
    """An episode that executes a sequence of actions and ignores observations."""

    needs_images = False
    needs_prediction = False

    def __init__(self, actions: Iterator[np.ndarray]) -> None:
        self._actions = actions

    def observe(self, observation: dict[str, Any]) -> None:
        pass

    def act(self) -> np.ndarray:
        return next(self._actions)


class OpenLoopPolicy:
    """Base class of policies that ignore observations; their episodes are `OpenLoopEpisode`."""

    def predict_chunks(self, episodes: Sequence[Any], timers: Sequence[Timer]) -> None:
        raise AssertionError("an open-loop episode never needs a prediction")


class ExpertPolicy(OpenLoopPolicy):
    """Acts with the task's scripted expert.

    Raises:
        UserError: the task has no expert.
    """

    name = str(EXPERT)

    def __init__(self, env_id: str) -> None:
        check_has_expert(env_id)
        self._env_id = env_id

    def start_episode(self, env: SimEnv, seed: int) -> OpenLoopEpisode:
        expert = make_expert(self._env_id, env)
        expert.reset()
        return OpenLoopEpisode(_expert_actions(expert))


def _expert_actions(expert: ScriptedExpert) -> Iterator[np.ndarray]:
    while True:
        yield expert.act()[0]


class ReplayPolicy(OpenLoopPolicy):
    """Replays recorded actions, and then repeats the last one until the episode ends.

    An episode whose seed was recorded replays that recording, which checks that it still succeeds.
    Any other episode replays the recording at index (seed mod number of recordings). This shows the
    success rate without feedback from observations.

    Raises:
        UserError: there is no episode at `path`, or an episode is invalid, lacks actions in the
            action space, or has actions of another size than the first one.
    """

    def __init__(self, path: Path, format: str, action_space: str) -> None:
        files = [path] if path.is_file() else require_episodes(path, lambda p: f"replay:{p}")
        digest = hashlib.sha256()
        control_hz: int | None = None
        self._recordings: list[np.ndarray] = []
        self._recording_by_seed: dict[int, np.ndarray] = {}
        for file, info in check_dataset(files[0].parent, files, format).items():
            if isinstance(info, str):
                raise UserError(info)
            actions = read_actions(info, action_space)
            digest.update(actions.tobytes())
            self._recordings.append(actions)
            if actions.shape[1] != self._recordings[0].shape[1]:
                raise UserError(
                    f"{file} has actions of {actions.shape[1]} numbers, but {files[0]} of "
                    f"{self._recordings[0].shape[1]}. Replay them separately."
                )
            control_hz = whole_number(info.attributes.get("control_hz"), minimum=1) or control_hz
            if info.seed is not None:
                self._recording_by_seed[info.seed] = actions
        self.name = f"replay-{digest.hexdigest()[:16]}"
        self.needs = PolicyNeeds(
            action_dim=self._recordings[0].shape[1],
            action_source=f"width of the actions in {files[0]}",
            control_hz=control_hz,
        )

    def start_episode(self, env: SimEnv, seed: int) -> OpenLoopEpisode:
        unrelated = self._recordings[seed % len(self._recordings)]
        actions = self._recording_by_seed.get(seed, unrelated)
        return OpenLoopEpisode(itertools.chain(actions, itertools.repeat(actions[-1])))


def make_policy(spec: PolicySpec, config: RolloutConfig) -> Policy:
    """Load a policy in this process.

    Raises:
        UserError: there is no checkpoint or episode at the path, or it is damaged.
    """
    if spec.kind == PolicyKind.EXPERT:
        return ExpertPolicy(config.task.env_id)
    folder = spec.local_path
    if spec.kind == PolicyKind.REPLAY:
        return ReplayPolicy(folder, config.data_format, config.task.action_space)
    download(folder, *POLICY_FILES)
    if spec.kind == PolicyKind.UNTRAINED:
        agent, trained_config = make_untrained_agent(folder, config.device)
        name = _untrained_name(trained_config)
    else:
        agent, _ = load_agent(folder, ema=config.use_ema_weights, device=config.device)
        name = weights_digest(folder, ema=config.use_ema_weights)
    agent.image_size = config.task.image_size  # may differ with evaluate.allow_task_mismatch
    if config.inference_steps is not None:
        agent.inference_steps = config.inference_steps
    return AgentPolicy(agent, name, config)


def describe_policy(spec: PolicySpec, config: RolloutConfig) -> tuple[str, PolicyNeeds]:
    """Return a policy's identifier in records, and its needs, without loading its agent.

    The checkpoint folder of an agent must already be complete on this machine.

    Raises:
        UserError: the task has no expert, or there is no episode to replay.
    """
    if spec.is_agent:
        trained = load_policy_config(spec.local_path)
        if spec.kind == PolicyKind.UNTRAINED:
            return _untrained_name(trained), agent_needs(trained)
        digest = weights_digest(spec.local_path, ema=config.use_ema_weights)
        return digest, agent_needs(trained)
    policy = make_policy(spec, config)
    return policy.name, policy.needs if isinstance(policy, ReplayPolicy) else PolicyNeeds()


def _untrained_name(config: Config) -> str:
    """Return `untrained-NAME` with the name of the agent group."""
    return f"untrained-{config.agent.name}"
