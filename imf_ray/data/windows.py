"""Windows: the observations and actions of one sample, extracted from episode slices.

A sample at step t has observations t - obs_horizon + 1 ... t and actions t - obs_horizon + 1 ...
t - obs_horizon + pred_horizon. Steps outside the episode repeat its first or last step; such
actions are marked in `action_is_pad`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from imf_ray.data.episodes import EpisodeFields, EpisodeRef, EpisodeSlice, read_slice
from imf_ray.data.sampling import EpochPlan, SamplePlan
from imf_ray.schema import Config

Batch = dict[str, np.ndarray | dict[str, np.ndarray]]


class SliceSamples(NamedTuple):
    """The samples of a batch that are extracted from the same slice."""

    source: EpisodeSlice
    steps: np.ndarray
    """(k,) step of each sample in its episode."""
    batch_indices: np.ndarray
    """(k,) index of each sample in the batch."""


@dataclass(frozen=True)
class WindowSpec:
    """Fields of a window, and its horizons in steps."""

    fields: EpisodeFields
    obs_horizon: int
    pred_horizon: int

    def observation_steps(self, steps: np.ndarray) -> np.ndarray:
        """(n, obs_horizon) observed steps of samples at `steps` (n,); some are negative."""
        return steps[:, None] + np.arange(1 - self.obs_horizon, 1)

    def action_steps(self, steps: np.ndarray) -> np.ndarray:
        """(n, pred_horizon) predicted steps of samples at `steps` (n,); some are outside."""
        return steps[:, None] + np.arange(self.pred_horizon) + 1 - self.obs_horizon

    def read(self, episode: EpisodeRef, start: int, stop: int) -> EpisodeSlice:
        """Read all steps that the windows of samples [start, stop) of an episode need.

        Raises:
            UserError: see `read_slice`.
        """
        ends = np.array([start, stop - 1])
        frames = np.clip(self.observation_steps(ends), 0, episode.length - 1)
        actions = np.clip(self.action_steps(ends), 0, episode.length - 1)
        return read_slice(
            episode,
            self.fields,
            (int(frames.min()), int(frames.max()) + 1),
            (int(actions.min()), int(actions.max()) + 1),
        )

    def extract(self, parts: Sequence[SliceSamples]) -> Batch:
        """Extract the windows of a batch.

        Args:
            parts: together, their batch indices are 0 ... n - 1.

        Returns:
            `images` {camera: (n, obs_horizon, H, W, 3) uint8}, `qpos` (n, obs_horizon, D),
            `action` (n, pred_horizon, A), `action_is_pad` (n, pred_horizon) bool, and if objects
            are requested `object_poses` {name: (n, obs_horizon, 7)}.
        """
        count, first = sum(len(part.steps) for part in parts), parts[0].source

        def empty(like: np.ndarray, horizon: int) -> np.ndarray:
            return np.empty((count, horizon, *like.shape[1:]), like.dtype)

        images = {c: empty(first.images[c], self.obs_horizon) for c in self.fields.cameras}
        poses = {o: empty(first.object_poses[o], self.obs_horizon) for o in self.fields.objects}
        qpos, action = empty(first.qpos, self.obs_horizon), empty(first.action, self.pred_horizon)
        is_pad = np.empty(action.shape[:2], bool)
        for source, steps, batch_indices in parts:
            observed_frames = np.clip(self.observation_steps(steps), 0, None) - source.frame_start
            action_steps = self.action_steps(steps)
            actions = np.clip(action_steps, 0, source.length - 1) - source.action_start
            if observed_frames.min() < 0 or actions.min() < 0:  # would index from the slice's end
                raise IndexError(f"Steps {steps} begin before their slice.")
            qpos[batch_indices] = source.qpos[observed_frames]
            action[batch_indices] = source.action[actions]
            is_pad[batch_indices] = (action_steps < 0) | (action_steps >= source.length)
            for name, values in poses.items():
                values[batch_indices] = source.object_poses[name][observed_frames]
            for camera, frames in images.items():
                # Copied one by one: indexing with an array would copy all images once more.
                for index, window in zip(batch_indices, observed_frames, strict=True):
                    for number, frame in enumerate(window):
                        frames[index, number] = source.images[camera][frame]
        batch: Batch = {"images": images, "qpos": qpos, "action": action, "action_is_pad": is_pad}
        if poses:
            batch["object_poses"] = poses
        return batch


def window_spec_from_config(config: Config) -> WindowSpec:
    """The windows of a run."""
    fields = EpisodeFields(
        cameras=tuple(config.agent.camera_names),
        objects=config.agent.recorded_objects,
        action_space=config.task.action_space,
        image_size=config.task.image_size,
    )
    return WindowSpec(
        fields,
        obs_horizon=config.agent.obs_horizon,
        pred_horizon=config.agent.pred_horizon,
    )


def sample_windows(
    episodes: Sequence[EpisodeRef], spec: WindowSpec, count: int, seed: int
) -> Batch:
    """Up to `count` windows, drawn without replacement from all steps of `episodes`."""
    offsets = np.cumsum([0] + [episode.length for episode in episodes])
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(offsets[-1], size=min(count, int(offsets[-1])), replace=False))
    parts = []
    for number, episode in enumerate(episodes):
        in_episode = (ids >= offsets[number]) & (ids < offsets[number + 1])
        for index in np.flatnonzero(in_episode):  # one read each: they may lie far apart
            step = int(ids[index] - offsets[number])
            source = spec.read(episode, step, step + 1)
            parts.append(SliceSamples(source, np.array([step]), np.array([index])))
    return spec.extract(parts)


class WindowBatcher:
    """Assembles one rank's batches from its stream of segments.

    Segments arrive in the order of `SamplePlan.rank_segments`. A segment is kept until its shuffle
    buffer is used up, so memory holds about `shuffle_buffer_blocks` segments of each shard.
    """

    def __init__(self, plan: SamplePlan, spec: WindowSpec, rank: int, world_size: int) -> None:
        self._plan = plan
        self._spec = spec
        self._shards = plan.rank_shards(rank, world_size)
        self._buffered: dict[tuple[int, int], EpisodeSlice] = {}

    def batches(
        self, segments: Iterable[tuple[int, int, EpisodeSlice]], start_step: int, max_steps: int
    ) -> Iterator[Batch]:
        """Yield the rank's parts of global batches [start_step, max_steps).

        Args:
            segments: triples (epoch, segment number, slice).

        Yields:
            Windows as from `WindowSpec.extract`, with `sample_id` (n,) int64.

        Raises:
            RuntimeError: the stream ended before the last batch was complete.
        """
        stream = iter(segments)
        for step in range(start_step, max_steps):
            epoch, batch = divmod(step, self._plan.steps_per_epoch)
            plan = self._plan.epoch(epoch)
            first = batch * self._plan.samples_per_shard
            last = first + self._plan.samples_per_shard
            located = [plan.locate(shard, plan.order[shard, first:last]) for shard in self._shards]
            numbers, steps = (np.concatenate(column) for column in zip(*located, strict=True))
            yield self._extract(stream, plan, epoch, numbers, steps)
            self._evict(plan, epoch, last)

    def _extract(
        self,
        stream: Iterator[tuple[int, int, EpisodeSlice]],
        plan: EpochPlan,
        epoch: int,
        segments: np.ndarray,
        steps: np.ndarray,
    ) -> Batch:
        parts = []
        for segment in np.unique(segments):
            indices = np.flatnonzero(segments == segment)
            source = self._segment(stream, (epoch, int(segment)))
            parts.append(SliceSamples(source, steps[indices], indices))
        batch = self._spec.extract(parts)
        batch["sample_id"] = self._plan.sample_offsets[plan.episode[segments]] + steps
        return batch

    def _segment(
        self, stream: Iterator[tuple[int, int, EpisodeSlice]], key: tuple[int, int]
    ) -> EpisodeSlice:
        while key not in self._buffered:
            epoch, number, source = next(stream, (-1, -1, None))
            if source is None:
                raise RuntimeError(
                    f"The stream ended before segment {key[1]} of epoch {key[0]} arrived."
                )
            self._buffered[epoch, number] = source
        return self._buffered[key]

    def _evict(self, plan: EpochPlan, epoch: int, position: int) -> None:
        """Drop segments of earlier epochs, and those whose buffer ends at or before `position`."""
        self._buffered = {
            (e, segment): source
            for (e, segment), source in self._buffered.items()
            if e > epoch or (e == epoch and plan.buffer_stop[segment] > position)
        }
