"""One policy in one environment: an episode from its seed to its record."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import gymnasium
import numpy as np
import torch

from imf_ray.agents.queues import ChunkQueue
from imf_ray.agents.vla import VLAAgent
from imf_ray.config import TaskConfig
from imf_ray.rollout.records import EpisodeRecord
from imf_ray.sim.expert import TransferExpert
from imf_ray.sim.transfer import SimTransferEnv

MILLISECONDS = 1e3


@dataclass(frozen=True)
class RolloutSettings:
    """What an episode depends on besides the policy and its seed."""

    task: TaskConfig
    camera_names: tuple[str, ...]
    noise_seed: int
    stop_on_success: bool = False


class Stopwatch:
    """Durations by name, in milliseconds."""

    def __init__(self) -> None:
        self.laps: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        """Add the time spent inside under `name`."""
        start = time.perf_counter()
        yield
        self.laps[name].append((time.perf_counter() - start) * MILLISECONDS)


class Policy(Protocol):
    """What the runner asks of a policy."""

    name: str

    def reset(self, env: SimTransferEnv, seed: int) -> None:
        """An episode with this seed begins in `env`, which was just reset."""

    @property
    def wants_images(self) -> bool:
        """Whether the next observation needs its pictures."""

    def act(self, observation: dict[str, Any], watch: Stopwatch) -> np.ndarray:
        """The action (action_dim,) for an observation of one step."""


class AgentPolicy:
    """An agent with its observation history and action queue.

    The noise of a chunk is keyed by (noise seed, episode, chunk), so that an episode does not
    depend on what was played before it.
    """

    def __init__(self, agent: VLAAgent, name: str, noise_seed: int, num_action_steps: int) -> None:
        self.name = name
        self._agent = agent.eval()
        self._noise_seed = noise_seed
        self._queue = ChunkQueue(agent.obs_horizon, num_action_steps)
        self._device = next(agent.parameters()).device

    def reset(self, env: SimTransferEnv, seed: int) -> None:
        self._queue.reset()
        self._episode, self._chunk = seed, 0

    @property
    def wants_images(self) -> bool:
        return self._queue.wants_images

    def act(self, observation: dict[str, Any], watch: Stopwatch) -> np.ndarray:
        self._queue.push(observation)
        if self._queue.needs_chunk:
            with watch.lap("preprocess_ms"):
                window = self._queue.window()
                batch = {
                    "images": {n: v[None].to(self._device) for n, v in window["images"].items()},
                    "qpos": window["qpos"][None].to(self._device),
                }
                rng = np.random.default_rng([self._noise_seed, self._episode, self._chunk])
                shape = (1, self._agent.pred_horizon, self._agent.action_dim)
                noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
            with watch.lap("inference_ms"):
                chunk = self._agent.predict_action(batch, noise=noise.to(self._device))[0].cpu()
            self._queue.extend(chunk)
            self._chunk += 1
        return self._queue.pop().numpy()


class ExpertPolicy:
    """The task's scripted expert, as the scale of a table of policies."""

    name = "expert"
    wants_images = False

    def reset(self, env: SimTransferEnv, seed: int) -> None:
        self._expert = TransferExpert(env)
        self._expert.reset()

    def act(self, observation: dict[str, Any], watch: Stopwatch) -> np.ndarray:
        return self._expert.act()[0]


def make_env(settings: RolloutSettings) -> gymnasium.Env[Any, Any]:
    """The task's environment, which draws nothing unless asked."""
    kwargs = settings.task.env_kwargs(settings.camera_names) | {"render_images": False}
    return gymnasium.make(settings.task.env_id, disable_env_checker=True, **kwargs)


def run_episode(
    policy: Policy,
    env: gymnasium.Env[Any, Any],
    seed: int,
    settings: RolloutSettings,
    on_step: Callable[[SimTransferEnv], None] | None = None,
) -> EpisodeRecord:
    """Play the episode of `seed`; pictures are rendered only where the policy looks.

    Args:
        on_step: called with the environment before each control step (for videos).
    """
    watch = Stopwatch()
    started = time.perf_counter()
    world = cast(SimTransferEnv, env.unwrapped)
    observation, info = env.reset(seed=seed)
    initial_cube_pose = tuple(float(x) for x in info["cube_pose"])
    policy.reset(world, seed)
    reward_sum, steps, over = 0.0, 0, False
    while not over:
        with watch.lap("loop_total_ms"):
            if on_step is not None:
                on_step(world)
            if policy.wants_images:
                with watch.lap("obs_read_ms"):
                    observation = {**observation, "images": world.render_cameras()}
            action = policy.act(observation, watch)
            with watch.lap("env_step_ms"):
                observation, reward, terminated, truncated, info = env.step(action)
        reward_sum += float(reward)
        steps += 1
        over = terminated or truncated or (settings.stop_on_success and info["success"])
    return EpisodeRecord(
        seed=seed,
        success=bool(info["success"]),
        max_stage=int(info["max_stage"]),
        reward_sum=reward_sum,
        steps=steps,
        initial_cube_pose=initial_cube_pose,
        policy=policy.name,
        timing=_timing(watch, time.perf_counter() - started, steps),
    )


def _timing(watch: Stopwatch, wall_s: float, steps: int) -> dict[str, float]:
    timing = {name: sum(laps) / steps for name, laps in watch.laps.items()}
    timing["wall_s"] = wall_s
    calls: Sequence[float] = watch.laps.get("inference_ms", ())
    for percent in (50, 95) if calls else ():
        timing[f"inference_ms_p{percent}"] = float(np.percentile(calls, percent))
    return timing
