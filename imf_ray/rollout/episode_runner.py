"""Runs episodes of one policy in several envs of one process.

Each episode steps its env until the policy needs the next action chunk. One batched call then
predicts the chunks of all episodes that need one. An env whose episode has ended is free for the
next seed, so envs do not wait for each other's episodes to end.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from imf_ray.errors import UserError
from imf_ray.rollout.artifacts import ArtifactRecorder, ArtifactRequest
from imf_ray.rollout.policies import EpisodePolicy, Policy
from imf_ray.rollout.records import EpisodeRecord, RolloutMetadata
from imf_ray.rollout.rollout_config import RolloutConfig, make_rollout_env, recorded_settings
from imf_ray.rollout.timing import MILLISECONDS_PER_SECOND, Timer
from imf_ray.sim.base import SimEnv

NO_ARTIFACTS = ArtifactRequest()
log = logging.getLogger(__name__)


class EpisodeResult(NamedTuple):
    """The record of a finished episode, the content of its files, and its computing times."""

    record: EpisodeRecord
    files: dict[str, bytes]
    """Content of the requested files, by name."""
    durations_ms: Mapping[str, Sequence[float]] = {}
    """Durations of each part of the episode, see `Timer`."""


class EpisodeError(Exception):
    """An episode cannot continue; the message says why."""


class EpisodeRunner:
    """Runs one policy in up to `num_envs` envs at a time."""

    def __init__(self, policy: Policy, config: RolloutConfig, num_envs: int) -> None:
        self._policy, self._config = policy, config
        self._free_envs = [make_rollout_env(config) for _ in range(num_envs)]
        self._running: list[_Episode] = []
        self.metadata = make_metadata(policy.name, config, self._free_envs[0])
        """Values that the records of all episodes have in common."""

    def load_rendering(self) -> None:
        """Load what the envs need to render cameras, if they have some.

        Otherwise the first episode would wait for it, and might exceed its time limit.

        Raises:
            UserError: no image can be rendered.
        """
        for env in self._free_envs if self._config.camera_names else ():
            cast(SimEnv, env.unwrapped).load_rendering()

    def start(self, seed: int, artifacts: ArtifactRequest = NO_ARTIFACTS) -> None:
        """Start the episode of a seed.

        Raises:
            IndexError: no env is free.
        """
        env = self._free_envs.pop()
        episode = _Episode(env, self._policy, seed, self._config, self.metadata, artifacts)
        self._running.append(episode)

    def run_until_any_done(self) -> list[EpisodeResult]:
        """Run until at least one episode has ended, and return the results of all that have.

        The list is empty if no episode is running.
        """
        while self._running:
            for episode in self._running:
                episode.run()
            done = [episode for episode in self._running if episode.done]
            if done:
                self._running = [episode for episode in self._running if not episode.done]
                self._free_envs += [self._reusable_env(episode) for episode in done]
                return [episode.result() for episode in done]
            self._policy.predict_chunks(
                [episode.policy for episode in self._running],
                [episode.timer for episode in self._running],
            )
        return []

    def _reusable_env(self, episode: _Episode) -> Any:
        """Return the env of an ended episode, or a new one if an error may have damaged it."""
        if episode.error is None:
            return episode.env
        try:
            episode.env.close()
        except Exception:  # the damaged env is replaced in any case
            log.exception("An env could not be closed")
        return make_rollout_env(self._config)


def make_metadata(policy_name: str, config: RolloutConfig, env: Any) -> RolloutMetadata:
    """Return the metadata that all records of a policy in an env have in common."""
    sim = cast(SimEnv, env.unwrapped)
    return RolloutMetadata(policy_name, recorded_settings(config, sim), sim.num_stages)


class _Episode:
    """A running episode. An exception raised by its env or policy ends it with an error.

    A `UserError`, such as that no image can be rendered, concerns all episodes. It is raised.
    """

    policy: EpisodePolicy

    def __init__(
        self,
        env: Any,
        policy: Policy,
        seed: int,
        config: RolloutConfig,
        metadata: RolloutMetadata,
        artifacts: ArtifactRequest,
    ) -> None:
        self.env = env
        self.timer = Timer()
        self.done = False
        self.error: str | None = None
        self._sim = cast(SimEnv, env.unwrapped)
        self._start_policy, self._seed, self._config = policy.start_episode, seed, config
        self._metadata = metadata
        self._artifacts = ArtifactRecorder(artifacts, self._sim)
        self._observation: dict[str, Any] | None = None
        self._observed = False
        self._return, self._steps = 0.0, 0
        self._info: dict[str, Any] = {}
        self._initial_poses: dict[str, list[float]] = {}

    def run(self) -> None:
        """Run until the policy needs a prediction or the episode is done."""
        try:
            with self.timer.measure("run_ms"):
                if self._observation is None:
                    self._reset()
                while not self.done:
                    if not self._observed:
                        self._observe()
                    if self.policy.needs_prediction:
                        return
                    self._step()
        except EpisodeError as error:
            self._fail(str(error))
        except UserError:
            raise
        except Exception as error:  # a broken env fails its own episode, not the evaluation
            log.exception("The episode of seed %d failed", self._seed)
            self._fail(f"{type(error).__name__}: {error}")

    def result(self) -> EpisodeResult:
        """Return the record and the files of the episode, once it is done."""
        record = EpisodeRecord(
            seed=self._seed,
            success=self.error is None and bool(self._info["success"]),
            max_stage=int(self._info.get("max_stage", 0)),
            num_stages=self._metadata.num_stages,
            episode_return=self._return,
            steps=self._steps,
            initial_poses=self._initial_poses,
            policy=self._metadata.policy,
            settings=self._metadata.settings,
            error=self.error,
            timing=self.timer.timing(self._steps),
        )
        files = {} if self.error else self._artifacts.files()
        return EpisodeResult(record, files, dict(self.timer.durations_ms))

    def _reset(self) -> None:
        """Reset the env with the seed and start the policy."""
        observation, self._info = self.env.reset(seed=self._seed)
        self._observation = self._check_finite(observation)
        self._initial_poses = {
            name: [float(x) for x in pose] for name, pose in self._info["poses"].items()
        }
        self.policy = self._start_policy(self._sim, self._seed)

    def _observe(self) -> None:
        """Pass the newest observation to the policy, with images if it needs them."""
        assert self._observation is not None
        observation = {**self._observation, "object_poses": self._privileged_poses()}
        if self.policy.needs_images:
            with self.timer.measure("obs_read_ms"):
                observation["images"] = self._sim.render_cameras()
        self.policy.observe(observation)
        self._observed = True

    def _privileged_poses(self) -> Mapping[str, np.ndarray]:
        """Return the true poses that are inputs of the policy, by object."""
        poses = self._info["poses"]
        names = self._config.privileged_pose_objects
        return {name: np.asarray(poses[name], np.float32) for name in names}

    def _step(self) -> None:
        """Execute the policy's next action in the env."""
        assert self._observation is not None
        action = self.policy.act()
        if not np.isfinite(action).all():
            raise EpisodeError(
                f"the policy's action at environment step {self._steps} is not finite"
            )
        self._artifacts.before_step(self._observation, action)
        with self.timer.measure("env_step_ms"):
            observation, reward, terminated, truncated, self._info = self.env.step(action)
        self._steps += 1
        self._observed = False
        self._observation = self._check_finite(observation)
        if not np.isfinite(reward):
            raise EpisodeError(f"the reward of environment step {self._steps} is {reward}")
        self._artifacts.after_step(float(reward), self._info)
        self._return += float(reward)
        stopped = self._config.stop_on_success and self._info["success"]
        out_of_steps = self._steps >= self._config.task.max_episode_steps
        self.done = bool(terminated or truncated or stopped or out_of_steps)
        self._check_timeout()

    def _check_finite(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Return the observation if its joint state is finite."""
        if not np.isfinite(observation["qpos"]).all():
            raise EpisodeError(f"the state after environment step {self._steps} is not finite")
        return observation

    def _check_timeout(self) -> None:
        parts = ("obs_read_ms", "env_step_ms", "preprocess_ms", "inference_ms")
        spent_s = self.timer.total_ms(*parts) / MILLISECONDS_PER_SECOND
        if spent_s > self._config.episode_timeout_s:
            raise EpisodeError(
                "the episode took more than evaluate.episode_timeout_s="
                f"{self._config.episode_timeout_s:g} s ({self._steps} environment steps)"
            )

    def _fail(self, reason: str) -> None:
        self.done, self.error = True, reason
