"""Episodes of one policy in several worlds of one process: from seeds to records.

No world waits for another: each plays on until its policy must plan, the plans that are due are
made in one call, and a world whose episode has ended is free for the next seed.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple, cast

import numpy as np

from imf_ray.rollout.artifacts import ArtifactRequest, Artifacts
from imf_ray.rollout.policies import EpisodePolicy, Policy
from imf_ray.rollout.records import EpisodeRecord
from imf_ray.rollout.rollout_config import RolloutConfig, make_rollout_env, recorded_settings
from imf_ray.rollout.timing import MILLISECONDS, Timer
from imf_ray.sim.base import SimEnv

log = logging.getLogger(__name__)


class EpisodeResult(NamedTuple):
    """A finished episode: its record, and the files that were asked for by name."""

    record: EpisodeRecord
    files: dict[str, bytes]


class EpisodeError(Exception):
    """An episode cannot go on; the message says why."""


class EpisodeRunner:
    """One policy in up to `worlds` environments at a time."""

    def __init__(self, policy: Policy, settings: RolloutConfig, worlds: int) -> None:
        self._policy, self._settings = policy, settings
        self._free = [make_rollout_env(settings) for _ in range(worlds)]
        self._playing: list[_Episode] = []

    def start(self, seed: int, keep: ArtifactRequest = ArtifactRequest()) -> None:  # noqa: B008 (it is frozen)
        """Begin the episode of a seed.

        Raises:
            IndexError: no world is free.
        """
        self._playing.append(_Episode(self._free.pop(), self._policy, seed, self._settings, keep))

    def advance(self) -> list[EpisodeResult]:
        """Play until at least one of the episodes in play has ended; return those that have."""
        while self._playing:
            for episode in self._playing:
                episode.play()
            ended = [episode for episode in self._playing if episode.over]
            if ended:
                self._playing = [episode for episode in self._playing if not episode.over]
                self._free += [self._reusable(episode) for episode in ended]
                return [episode.result() for episode in ended]
            self._policy.plan(
                [episode.controller for episode in self._playing],
                [episode.watch for episode in self._playing],
            )
        return []

    def _reusable(self, episode: _Episode) -> Any:
        """The environment of an ended episode, or a new one where it may be damaged."""
        if episode.error is None:
            return episode.env
        try:
            episode.env.close()
        except Exception:  # a damaged environment: it is replaced either way
            log.exception("An environment could not be closed")
        return make_rollout_env(self._settings)


class _Episode:
    """One episode in play. What its world or its controller raise ends it with an error."""

    controller: EpisodePolicy

    def __init__(
        self, env: Any, policy: Policy, seed: int, settings: RolloutConfig, keep: ArtifactRequest
    ) -> None:
        self.env = env
        self.watch = Timer()
        self.over = False
        self.error: str | None = None
        self._world = cast(SimEnv, env.unwrapped)
        self._policy, self._seed, self._settings = policy, seed, settings
        self._artifacts = Artifacts(keep, self._world)
        self._observation: dict[str, Any] | None = None
        self._seen = False
        self._episode_return, self._steps = 0.0, 0
        self._info: dict[str, Any] = {}
        self._initial_poses: dict[str, list[float]] = {}

    def play(self) -> None:
        """Play until the policy must plan or the episode is over."""
        try:
            with self.watch.lap("play_ms"):
                if self._observation is None:
                    self._begin()
                while not self.over:
                    if not self._seen:
                        self._look()
                    if self.controller.needs_prediction:
                        return
                    self._act()
        except EpisodeError as error:
            self._fail(str(error))
        except Exception as error:  # a broken world costs its episode, not the judgement
            log.exception("The episode of seed %d failed", self._seed)
            self._fail(f"{type(error).__name__}: {error}")

    def result(self) -> EpisodeResult:
        """The record of the episode, and its files."""
        record = EpisodeRecord(
            seed=self._seed,
            success=self.error is None and bool(self._info["success"]),
            max_stage=int(self._info.get("max_stage", 0)),
            num_stages=self._world.num_stages,
            episode_return=self._episode_return,
            steps=self._steps,
            initial_poses=self._initial_poses,
            policy=self._policy.name,
            settings=recorded_settings(self._settings, self._world),
            error=self.error,
            timing=self.watch.timing(self._steps),
        )
        return EpisodeResult(record, {} if self.error else self._artifacts.files())

    def _begin(self) -> None:
        observation, self._info = self.env.reset(seed=self._seed)
        self._observation = self._finite(observation)
        self._initial_poses = {
            name: [float(x) for x in pose] for name, pose in self._info["poses"].items()
        }
        self.controller = self._policy.begin(self._world, self._seed)

    def _look(self) -> None:
        assert self._observation is not None
        observation = self._observation
        if self._settings.privileged_pose_objects:
            told = [self._info["poses"][name] for name in self._settings.privileged_pose_objects]
            qpos = np.concatenate([observation["qpos"], *told]).astype(np.float32)
            observation = {**observation, "qpos": qpos}
        if self.controller.needs_images:
            with self.watch.lap("obs_read_ms"):
                observation = {**observation, "images": self._world.render_cameras()}
        self.controller.observe(observation)
        self._seen = True

    def _act(self) -> None:
        assert self._observation is not None
        action = self.controller.act()
        if not np.isfinite(action).all():
            raise EpisodeError(f"the policy's action at step {self._steps} is not finite")
        self._artifacts.before_step(self._observation, action)
        with self.watch.lap("env_step_ms"):
            observation, reward, terminated, truncated, self._info = self.env.step(action)
        self._steps += 1
        self._seen = False
        self._observation = self._finite(observation)
        if not np.isfinite(reward):
            raise EpisodeError(f"the reward of step {self._steps} is {reward}")
        self._artifacts.after_step(float(reward), self._info)
        self._episode_return += float(reward)
        stopped = self._settings.stop_on_success and self._info["success"]
        out_of_steps = self._steps >= self._settings.task.max_episode_steps
        self.over = bool(terminated or truncated or stopped or out_of_steps)
        self._require_time()

    def _finite(self, observation: dict[str, Any]) -> dict[str, Any]:
        if not np.isfinite(observation["qpos"]).all():
            raise EpisodeError(f"the observed state after step {self._steps} is not finite")
        return observation

    def _require_time(self) -> None:
        parts = ("obs_read_ms", "env_step_ms", "preprocess_ms", "inference_ms")
        spent = self.watch.total_ms(*parts) / MILLISECONDS
        if spent > self._settings.episode_timeout_s:
            raise EpisodeError(
                f"it took more than evaluate.episode_timeout_s={self._settings.episode_timeout_s:g} s "
                f"({self._steps} steps)"
            )

    def _fail(self, reason: str) -> None:
        self.over, self.error = True, reason
