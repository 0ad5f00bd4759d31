"""Windows: the observations and actions of one training sample.

The window of a sample at environment step t has two parts:

* observations of the steps t - obs_horizon + 1 ... t,
* an action chunk of pred_horizon steps. It starts at step t - obs_horizon + 1, the step of the
  oldest observation, as in Diffusion Policy.

A step before the start of the episode gets the episode's first value, a step after its end the last
value. Such actions are marked in `action_is_pad`.

See `imf_ray.data.sampling` for the terms *sample*, *segment*, *slice* and *shuffle buffer*.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from imf_ray.data.episodes import EpisodeFields, EpisodeRef, EpisodeSlice
from imf_ray.data.readers import read_slice
from imf_ray.data.sampling import EpochPlan, SamplePlan
from imf_ray.schema import Config

Batch = dict[str, np.ndarray | dict[str, np.ndarray]]
"""Arrays of a batch by name, as returned by `WindowSpec.extract`."""


class SliceSamples(NamedTuple):
    """One slice, and the samples of a batch whose windows are extracted from it."""

    source: EpisodeSlice
    steps: np.ndarray
    """(k,) environment step of each sample in its episode."""
    batch_indices: np.ndarray
    """(k,) index of each sample in the batch."""


@dataclass(frozen=True)
class WindowSpec:
    """Contents of a window: the fields that are read, and the numbers of observations and actions.

    Args:
        obs_horizon: observations in a window.
        pred_horizon: actions in a window.
    """

    fields: EpisodeFields
    obs_horizon: int
    pred_horizon: int

    def observation_indices(self, steps: np.ndarray) -> np.ndarray:
        """Return the observed steps (n, obs_horizon) of samples at `steps` (n,).

        They may be negative near the start of an episode.
        """
        return steps[:, None] + np.arange(1 - self.obs_horizon, 1)

    def action_indices(self, steps: np.ndarray) -> np.ndarray:
        """Return the steps (n, pred_horizon) of the action chunks of samples at `steps` (n,).

        They may be negative near the start of an episode, and too large near its end.
        """
        return steps[:, None] + np.arange(self.pred_horizon) + 1 - self.obs_horizon

    def read(self, episode: EpisodeRef, start: int, stop: int) -> EpisodeSlice:
        """Read the slice that contains the windows of samples [start, stop) of an episode.

        Raises:
            UserError: see `read_slice`.
        """
        outermost_samples = np.array([start, stop - 1])
        frames = np.clip(self.observation_indices(outermost_samples), 0, episode.length - 1)
        actions = np.clip(self.action_indices(outermost_samples), 0, episode.length - 1)
        return read_slice(
            episode,
            self.fields,
            (int(frames.min()), int(frames.max()) + 1),
            (int(actions.min()), int(actions.max()) + 1),
        )

    def extract(self, groups: Sequence[SliceSamples]) -> Batch:
        """Copy the windows of a batch out of their slices.

        Args:
            groups: the samples of the batch, grouped by slice. Every index 0 ... n - 1 of the batch
                appears in exactly one group.

        Returns:
            `images` {camera: (n, obs_horizon, H, W, 3) uint8}, `qpos` (n, obs_horizon, D),
            `action` (n, pred_horizon, A) and `action_is_pad` (n, pred_horizon) bool. If `fields`
            has objects, also `object_poses` {name: (n, obs_horizon, 7)}.
        """
        batch_size = sum(len(group.steps) for group in groups)
        example = groups[0].source

        def allocate(like: np.ndarray, horizon: int) -> np.ndarray:
            return np.empty((batch_size, horizon, *like.shape[1:]), like.dtype)

        images = {c: allocate(example.images[c], self.obs_horizon) for c in self.fields.cameras}
        poses = {
            name: allocate(example.object_poses[name], self.obs_horizon)
            for name in self.fields.objects
        }
        qpos = allocate(example.qpos, self.obs_horizon)
        action = allocate(example.action, self.pred_horizon)
        is_pad = np.empty(action.shape[:2], bool)
        for source, steps, batch_indices in groups:
            frame_indices = np.clip(self.observation_indices(steps), 0, None) - source.frame_start
            action_steps = self.action_indices(steps)
            action_indices = np.clip(action_steps, 0, source.length - 1) - source.action_start
            # A negative index would silently read from the end of the slice.
            if frame_indices.min() < 0 or action_indices.min() < 0:
                raise IndexError(f"The windows of steps {steps} start before their slice.")
            qpos[batch_indices] = source.qpos[frame_indices]
            action[batch_indices] = source.action[action_indices]
            is_pad[batch_indices] = (action_steps < 0) | (action_steps >= source.length)
            for name, values in poses.items():
                values[batch_indices] = source.object_poses[name][frame_indices]
            for camera, windows in images.items():
                # Images are copied one by one, because indexing with an array copies them twice.
                for index, window_frames in zip(batch_indices, frame_indices, strict=True):
                    for time, frame in enumerate(window_frames):
                        windows[index, time] = source.images[camera][frame]
        batch: Batch = {"images": images, "qpos": qpos, "action": action, "action_is_pad": is_pad}
        if poses:
            batch["object_poses"] = poses
        return batch


def window_spec_from_config(config: Config, images: bool = True) -> WindowSpec:
    """Make the `WindowSpec` of a config; without `images`, no camera is read."""
    fields = EpisodeFields(
        cameras=tuple(config.agent.camera_names) if images else (),
        objects=config.agent.recorded_objects,
        action_space=config.task.action_space,
        image_size=config.task.image_size,
        channel_order=config.data.channel_order,
        features=config.data.features,
    )
    return WindowSpec(
        fields,
        obs_horizon=config.agent.obs_horizon,
        pred_horizon=config.agent.pred_horizon,
    )


def sample_windows(
    episodes: Sequence[EpisodeRef], spec: WindowSpec, count: int, seed: int
) -> Batch:
    """Return a batch of up to `count` windows of random steps, drawn without replacement.

    There are fewer if the episodes have fewer steps in total.
    """
    offsets = np.cumsum([0] + [episode.length for episode in episodes])
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(offsets[-1], size=min(count, int(offsets[-1])), replace=False))
    groups = []
    for episode_index, episode in enumerate(episodes):
        in_episode = (ids >= offsets[episode_index]) & (ids < offsets[episode_index + 1])
        # Each window is read on its own, because the steps may lie far apart.
        for index in np.flatnonzero(in_episode):
            step = int(ids[index] - offsets[episode_index])
            source = spec.read(episode, step, step + 1)
            groups.append(SliceSamples(source, np.array([step]), np.array([index])))
    return spec.extract(groups)


class WindowBatcher:
    """Assembles the batches of one rank (training worker) from its stream of slices.

    Each slice belongs to a segment: consecutive samples of one episode. The stream has the order of
    `SamplePlan.rank_segments`. The segments of a shuffle buffer are shuffled together, so a slice
    stays in memory until all samples of its shuffle buffer have been yielded. This is about
    `shuffle_buffer_blocks` slices of each virtual shard.
    """

    def __init__(self, plan: SamplePlan, spec: WindowSpec, rank: int, world_size: int) -> None:
        self._plan = plan
        self._spec = spec
        self._shards = plan.rank_shards(rank, world_size)
        self._slices: dict[tuple[int, int], EpisodeSlice] = {}  # by epoch and segment index

    def batches(
        self, slices: Iterable[tuple[int, int, EpisodeSlice]], start_step: int, max_steps: int
    ) -> Iterator[Batch]:
        """Yield the rank's parts of the global batches of training steps [start_step, max_steps).

        Args:
            slices: triples (epoch, segment index, slice).

        Yields:
            Windows as from `WindowSpec.extract`, and in addition `sample_id` (n,) int64.

        Raises:
            RuntimeError: `slices` ended before the last batch was complete.
        """
        stream = iter(slices)
        for training_step in range(start_step, max_steps):
            epoch, batch_index = divmod(training_step, self._plan.steps_per_epoch)
            plan = self._plan.epoch(epoch)
            start = batch_index * self._plan.samples_per_shard
            stop = start + self._plan.samples_per_shard
            located = [plan.locate(shard, plan.order[shard, start:stop]) for shard in self._shards]
            segments, steps = (np.concatenate(column) for column in zip(*located, strict=True))
            yield self._make_batch(stream, plan, epoch, segments, steps)
            self._evict(plan, epoch, stop)

    def _make_batch(
        self,
        stream: Iterator[tuple[int, int, EpisodeSlice]],
        plan: EpochPlan,
        epoch: int,
        segments: np.ndarray,
        steps: np.ndarray,
    ) -> Batch:
        """Make the batch of n samples, given the segment (n,) and the episode step (n,) of each."""
        groups = []
        for segment in np.unique(segments):
            batch_indices = np.flatnonzero(segments == segment)
            source = self._wait_for_slice(stream, (epoch, int(segment)))
            groups.append(SliceSamples(source, steps[batch_indices], batch_indices))
        batch = self._spec.extract(groups)
        batch["sample_id"] = self._plan.sample_offsets[plan.episode[segments]] + steps
        return batch

    def _wait_for_slice(
        self, stream: Iterator[tuple[int, int, EpisodeSlice]], key: tuple[int, int]
    ) -> EpisodeSlice:
        """Return the slice of `key` (epoch, segment index), reading the stream until it arrives."""
        while key not in self._slices:
            epoch, segment, source = next(stream, (-1, -1, None))
            if source is None:
                raise RuntimeError(
                    f"The stream ended before segment {key[1]} of epoch {key[0]} arrived."
                )
            self._slices[epoch, segment] = source
        return self._slices[key]

    def _evict(self, plan: EpochPlan, epoch: int, position: int) -> None:
        """Drop slices of earlier epochs, and those whose shuffle buffer ends by `position`."""
        self._slices = {
            (slice_epoch, segment): source
            for (slice_epoch, segment), source in self._slices.items()
            if slice_epoch > epoch
            or (slice_epoch == epoch and plan.buffer_stop[segment] > position)
        }
