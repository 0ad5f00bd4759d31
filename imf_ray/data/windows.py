"""Windows: what the policy sees and is asked to predict at one step, cut out of episode slices.

A sample at step t has observations t - obs_horizon + 1 ... t and actions t - obs_horizon + 1 ...
t - obs_horizon + pred_horizon. Steps outside the episode repeat its edge; such actions are marked
in `action_is_pad`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from imf_ray.data.episodes import EpisodeFields, EpisodeRef, EpisodeSlice, read_slice
from imf_ray.data.sampling import EpochPlan, SamplePlan

Batch = dict[str, np.ndarray | dict[str, np.ndarray]]


class SliceSamples(NamedTuple):
    """Samples of a batch that are cut out of the same slice."""

    source: EpisodeSlice
    steps: np.ndarray
    """(k,) steps of the samples in their episode."""
    places: np.ndarray
    """(k,) their places in the batch."""


@dataclass(frozen=True)
class WindowSpec:
    """How windows are cut: what is read, and the horizons in steps."""

    selection: EpisodeFields
    obs_horizon: int
    pred_horizon: int

    def observation_steps(self, steps: np.ndarray) -> np.ndarray:
        """(n, obs_horizon) steps observed by samples at `steps` (n,); some lie before 0."""
        return steps[:, None] + np.arange(1 - self.obs_horizon, 1)

    def action_steps(self, steps: np.ndarray) -> np.ndarray:
        """(n, pred_horizon) steps predicted by samples at `steps` (n,); some lie outside."""
        return steps[:, None] + np.arange(self.pred_horizon) + 1 - self.obs_horizon

    def read(self, episode: EpisodeRef, start: int, stop: int) -> EpisodeSlice:
        """Read all that windows at sample starts [start, stop) of an episode need.

        Raises:
            UserError: as `read_slice`.
        """
        ends = np.array([start, stop - 1])
        frames = np.clip(self.observation_steps(ends), 0, episode.length - 1)
        actions = np.clip(self.action_steps(ends), 0, episode.length - 1)
        return read_slice(
            episode,
            self.selection,
            (int(frames.min()), int(frames.max()) + 1),
            (int(actions.min()), int(actions.max()) + 1),
        )

    def cut(self, pieces: Sequence[SliceSamples]) -> Batch:
        """The windows of a batch.

        Args:
            pieces: their places together are 0 ... n - 1.

        Returns:
            `images` {camera: (n, obs_horizon, H, W, 3) uint8}, `qpos` (n, obs_horizon, D),
            `action` (n, pred_horizon, A), `action_is_pad` (n, pred_horizon) bool.
        """
        count, first = sum(len(piece.steps) for piece in pieces), pieces[0].source

        def empty(like: np.ndarray, horizon: int) -> np.ndarray:
            return np.empty((count, horizon, *like.shape[1:]), like.dtype)

        images = {c: empty(first.images[c], self.obs_horizon) for c in self.selection.cameras}
        qpos, action = empty(first.qpos, self.obs_horizon), empty(first.action, self.pred_horizon)
        is_pad = np.empty(action.shape[:2], bool)
        for source, steps, places in pieces:
            frames = np.clip(self.observation_steps(steps), 0, None) - source.frame_start
            wanted = self.action_steps(steps)
            actions = np.clip(wanted, 0, source.length - 1) - source.action_start
            if frames.min() < 0 or actions.min() < 0:  # would count from the slice's end
                raise IndexError(f"Steps {steps} begin before their slice.")
            qpos[places], action[places] = source.qpos[frames], source.action[actions]
            is_pad[places] = (wanted < 0) | (wanted >= source.length)
            for camera, pictures in images.items():
                # One by one to their places: an index array would copy all of them once more.
                for place, seen in zip(places, frames, strict=True):
                    for number, frame in enumerate(seen):
                        pictures[place, number] = source.images[camera][frame]
        return {"images": images, "qpos": qpos, "action": action, "action_is_pad": is_pad}


def sample_windows(
    episodes: Sequence[EpisodeRef], spec: WindowSpec, count: int, seed: int
) -> Batch:
    """Up to `count` windows drawn without replacement from all steps of `episodes`."""
    offsets = np.cumsum([0] + [episode.length for episode in episodes])
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(offsets[-1], size=min(count, int(offsets[-1])), replace=False))
    pieces = []
    for number, episode in enumerate(episodes):
        places = np.flatnonzero((ids >= offsets[number]) & (ids < offsets[number + 1]))
        for place in places:  # each by itself: between them may lie a whole episode
            step = int(ids[place] - offsets[number])
            source = spec.read(episode, step, step + 1)
            pieces.append(SliceSamples(source, np.array([step]), np.array([place])))
    return spec.cut(pieces)


class WindowBatcher:
    """Turns one rank's stream of rows into its batches.

    Rows arrive in the order of `SamplePlan.rank_rows`; a row is kept until its pool is used up,
    so that memory holds about `shuffle_buffer_blocks` rows of each shard.
    """

    def __init__(self, plan: SamplePlan, spec: WindowSpec, rank: int, world_size: int) -> None:
        self._plan = plan
        self._spec = spec
        self._shards = plan.rank_shards(rank, world_size)
        self._held: dict[tuple[int, int], EpisodeSlice] = {}

    def batches(
        self, rows: Iterable[tuple[int, int, EpisodeSlice]], start_step: int, max_steps: int
    ) -> Iterator[Batch]:
        """The rank's parts of global batches [start_step, max_steps).

        Args:
            rows: triples (epoch, row number, slice).

        Yields:
            Windows as of `WindowSpec.cut`, with `sample_id` (n,) int64.

        Raises:
            RuntimeError: the stream ended before the last batch was complete.
        """
        stream = iter(rows)
        for step in range(start_step, max_steps):
            epoch, batch = divmod(step, self._plan.steps_per_epoch)
            plan = self._plan.epoch(epoch)
            first = batch * self._plan.samples_per_shard
            last = first + self._plan.samples_per_shard
            parts = [plan.locate(shard, plan.order[shard, first:last]) for shard in self._shards]
            row_numbers, steps = (np.concatenate(column) for column in zip(*parts, strict=True))
            yield self._cut(stream, plan, epoch, row_numbers, steps)
            self._release(plan, epoch, last)

    def _cut(
        self,
        stream: Iterator[tuple[int, int, EpisodeSlice]],
        plan: EpochPlan,
        epoch: int,
        rows: np.ndarray,
        steps: np.ndarray,
    ) -> Batch:
        pieces = []
        for row in np.unique(rows):
            places = np.flatnonzero(rows == row)
            pieces.append(SliceSamples(self._row(stream, (epoch, int(row))), steps[places], places))
        batch = self._spec.cut(pieces)
        batch["sample_id"] = self._plan.sample_offsets[plan.episode[rows]] + steps
        return batch

    def _row(
        self, stream: Iterator[tuple[int, int, EpisodeSlice]], key: tuple[int, int]
    ) -> EpisodeSlice:
        while key not in self._held:
            epoch, row, source = next(stream, (-1, -1, None))
            if source is None:
                raise RuntimeError(f"The row stream ended before row {key[1]} of epoch {key[0]}.")
            self._held[epoch, row] = source
        return self._held[key]

    def _release(self, plan: EpochPlan, epoch: int, position: int) -> None:
        """Forget rows of earlier epochs, and those whose pool ends at or before `position`."""
        self._held = {
            (e, row): source
            for (e, row), source in self._held.items()
            if e > epoch or (e == epoch and plan.pool_stop[row] > position)
        }
