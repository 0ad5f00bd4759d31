"""Who can be judged: an agent, the scripted expert, a recorded episode, an untrained agent.

A policy is named by a checkpoint folder, `expert`, `untrained:CHECKPOINT` (the same agent with
fresh weights: the bottom of a table) or `replay:PATH` (an episode file or a data set, played back
without looking).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from imf_ray.agents.action_queue import ActionQueue
from imf_ray.agents.base import VLAAgent
from imf_ray.agents.pretrained import POLICY_FILES, load_agent, make_untrained_agent, weights_digest
from imf_ray.data.episodes import read_actions
from imf_ray.data.index import check_dataset, list_episodes
from imf_ray.errors import UserError
from imf_ray.rollout.rollout_config import RolloutConfig
from imf_ray.rollout.timing import Timer
from imf_ray.sim.base import ScriptedExpert, SimEnv
from imf_ray.sim.experts import EXPERTS, make_expert
from imf_ray.storage import download, local_dir, to_local

EXPERT = "expert"
UNTRAINED, REPLAY = "untrained:", "replay:"


class EpisodePolicy(Protocol):
    """A policy in one episode."""

    @property
    def needs_images(self) -> bool:
        """Whether the next observation needs its pictures."""

    @property
    def needs_prediction(self) -> bool:
        """Whether `Policy.plan` is due before `act`."""

    def observe(self, observation: dict[str, Any]) -> None:
        """Take in the observation of this control step."""

    def act(self) -> np.ndarray:
        """The action (action_dim,) of this control step."""


class Policy(Protocol):
    """What the runner asks of a policy."""

    name: str

    def begin(self, world: SimEnv, seed: int) -> EpisodePolicy:
        """The controller of the episode `seed`, which has just begun in `world`."""

    def plan(self, controllers: Sequence[Any], watches: Sequence[Timer]) -> None:
        """Give each of these controllers of this policy, all of which need one, its next chunk."""


class AgentEpisode:
    """Observation history and action queue of one episode."""

    def __init__(self, queue: ActionQueue, noise_seed: int, episode: int) -> None:
        self.queue = queue
        self._noise_key = [noise_seed, episode]
        self._chunks = 0

    @property
    def needs_images(self) -> bool:
        return self.queue.needs_images

    @property
    def needs_prediction(self) -> bool:
        return self.queue.needs_prediction

    def observe(self, observation: dict[str, Any]) -> None:
        self.queue.push(observation)

    def act(self) -> np.ndarray:
        return self.queue.pop().numpy()

    def next_noise(self, shape: tuple[int, int]) -> torch.Tensor:
        """The noise of the next chunk, keyed by (noise seed, episode, chunk)."""
        rng = np.random.default_rng([*self._noise_key, self._chunks])
        self._chunks += 1
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


class AgentPolicy:
    """One agent for all episodes of a process.

    Every call has `settings.inference_batch_size` rows, filled up with copies of the last one: a row's
    result then does not depend on how many episodes are due.
    """

    def __init__(self, agent: VLAAgent, name: str, settings: RolloutConfig) -> None:
        assert settings.num_action_steps is not None
        self.name = name
        self._agent = agent.eval()
        self._settings = settings
        self._num_action_steps = settings.num_action_steps
        self._device = next(agent.parameters()).device

    def begin(self, world: SimEnv, seed: int) -> AgentEpisode:
        queue = ActionQueue(self._agent.obs_horizon, self._num_action_steps)
        return AgentEpisode(queue, self._settings.noise_seed, seed)

    def plan(self, controllers: Sequence[AgentEpisode], watches: Sequence[Timer]) -> None:
        size = self._settings.inference_batch_size
        for first in range(0, len(controllers), size):
            part = slice(first, first + size)
            self._plan(controllers[part], watches[part])

    def _plan(self, due: Sequence[AgentEpisode], watches: Sequence[Timer]) -> None:
        rows = [
            *range(len(due)),
            *[len(due) - 1] * (self._settings.inference_batch_size - len(due)),
        ]
        with Timer.shared(watches, "preprocess_ms"):
            windows = [controller.queue.window() for controller in due]
            images = {
                camera: torch.stack([windows[row]["images"][camera] for row in rows])
                for camera in windows[0]["images"]
            }
            batch = {
                "images": {name: frames.to(self._device) for name, frames in images.items()},
                "qpos": torch.stack([windows[row]["qpos"] for row in rows]).to(self._device),
            }
            shape = (self._agent.pred_horizon, self._agent.action_dim)
            noises = [controller.next_noise(shape) for controller in due]
            noise = torch.stack([noises[row] for row in rows]).to(self._device)
        with Timer.shared(watches, "inference_ms", whole="call_ms"):
            chunks = self._agent.predict_action(batch, noise=noise).cpu()
        for controller, chunk in zip(due, chunks, strict=False):
            controller.queue.extend(chunk)


class _Open:
    """A controller that looks at nothing and plans nothing."""

    needs_images = False
    needs_prediction = False

    def observe(self, observation: dict[str, Any]) -> None:
        pass


class _OpenPolicy:
    def plan(self, controllers: Sequence[Any], watches: Sequence[Timer]) -> None:
        raise AssertionError("never due")


class ExpertController(_Open):
    """The expert in one episode."""

    def __init__(self, expert: ScriptedExpert) -> None:
        self._expert = expert
        self._expert.reset()

    def act(self) -> np.ndarray:
        return self._expert.act()[0]


class ExpertPolicy(_OpenPolicy):
    """The task's scripted expert: the top of a table.

    Raises:
        UserError: the task has none.
    """

    name = EXPERT

    def __init__(self, env_id: str) -> None:
        if env_id not in EXPERTS:
            raise UserError(
                f"task.env_id={env_id} has no scripted expert; {', '.join(EXPERTS)} have one."
            )
        self._env_id = env_id

    def begin(self, world: SimEnv, seed: int) -> ExpertController:
        return ExpertController(make_expert(self._env_id, world))


class ReplayController(_Open):
    """Recorded actions (T, action_dim), one after the other; the last one is held."""

    def __init__(self, actions: np.ndarray) -> None:
        self._actions = actions
        self._step = 0

    def act(self) -> np.ndarray:
        action = self._actions[min(self._step, len(self._actions) - 1)]
        self._step += 1
        return action


class ReplayPolicy(_OpenPolicy):
    """Plays back recorded actions: those of the episode's own seed where it was recorded, else
    those of recorded episode number (seed mod number of episodes).

    The first is a check of the recording; the second shows how far blind repetition gets.

    Raises:
        UserError: no episode at `path`, a bad one, or one without the action space.
    """

    def __init__(self, path: Path, format: str, action_space: str) -> None:
        files = list_episodes(path) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            raise UserError(f"{path} holds no episode to play back.")
        digest = hashlib.sha256()
        self._actions: list[np.ndarray] = []
        self._by_seed: dict[int, np.ndarray] = {}
        for file, info in check_dataset(files[0].parent, files, format).items():
            if isinstance(info, str):
                raise UserError(info)
            actions = read_actions(file, info.format, action_space)
            digest.update(actions.tobytes())
            self._actions.append(actions)
            if "seed" in info.attributes:
                self._by_seed[int(info.attributes["seed"])] = actions
        self.name = f"replay-{digest.hexdigest()[:16]}"

    def begin(self, world: SimEnv, seed: int) -> ReplayController:
        blind = self._actions[seed % len(self._actions)]
        return ReplayController(self._by_seed.get(seed, blind))


def make_policy(spec: str, settings: RolloutConfig) -> Policy:
    """Load the policy that `spec` names, in this process.

    Raises:
        UserError: it names no checkpoint or no episode, or what is there is damaged.
    """
    if spec == EXPERT:
        return ExpertPolicy(settings.task.env_id)
    if spec.startswith(REPLAY):
        path = Path(spec.removeprefix(REPLAY))
        return ReplayPolicy(path, settings.data_format, settings.task.action_space)
    if spec.startswith(UNTRAINED):
        folder = to_local(local_dir(spec.removeprefix(UNTRAINED)))
        download(folder, *POLICY_FILES)
        agent, config = make_untrained_agent(folder, settings.device)
        name = f"untrained-{config.agent.name}"
    else:
        folder = to_local(local_dir(spec))
        download(folder, *POLICY_FILES)
        agent, config = load_agent(folder, ema=settings.use_ema_weights, device=settings.device)
        name = weights_digest(folder, ema=settings.use_ema_weights)
    unknown = [camera for camera in agent.camera_names if camera not in settings.camera_names]
    if unknown:
        raise UserError(
            f"The policy {spec} sees the cameras {list(agent.camera_names)}, but "
            f"{list(settings.camera_names)} are rendered: add {unknown} to data.camera_names."
        )
    if settings.inference_steps is not None:
        agent.inference_steps = settings.inference_steps
    return AgentPolicy(agent, name, settings)
