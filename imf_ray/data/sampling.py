"""The order of samples: a pure function of (seed, epoch), the same for every world size.

Terms of the data pipeline:

* A *rank* is a training worker. The *world size* is the number of ranks.
* A *global batch* contains the samples of one training step, from all ranks.
* A *sample* is one environment step of one episode. Its *window* contains the observations and
  actions around this step (see `imf_ray.data.windows`).
* A *block* consists of `read_block_steps` consecutive samples of one episode. The last block of an
  episode may be shorter.
* A *virtual shard* is one of V equal parts of an epoch, like the canonical nodes of MosaicML
  Streaming. V is fixed for a run, while the number of ranks may change.
* A *segment* is the part of a block that falls into one shard, usually all of it. Each segment is
  read with one read of its episode file and is one row of the Ray dataset.
* A *slice* is the result of reading a segment: the images, states and actions that the windows of
  its samples contain (`imf_ray.data.episodes.EpisodeSlice`).
* A *shuffle buffer* consists of `shuffle_buffer_blocks` consecutive segments of a shard. Their
  samples are shuffled together.

An epoch permutes the blocks, concatenates their samples and divides the sequence among the shards.
Each global batch takes the same number of samples from every shard, shard by shard. Each rank owns
V / world_size consecutive shards. If V is not a multiple of the world size, some ranks own one
more.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from imf_ray.errors import UserError

DEFAULT_VIRTUAL_SHARDS = 8
"""Number of virtual shards if none is configured and the batch size is a multiple of 8."""
_BLOCK_ORDER, _BUFFER_ORDER = 0, 1  # parts of the seed: block order, order within a buffer


@dataclass(frozen=True)
class EpochPlan:
    """The S segments of one epoch, and the order of its samples.

    A *shard position* is the index of a sample in its virtual shard before shuffling, 0 ... M - 1,
    where M is the number of samples in a shard.
    """

    shard: np.ndarray
    """(S,) int64 shard of each segment. Segments are sorted by shard and position."""
    episode: np.ndarray
    """(S,) int64 index of the episode of each segment."""
    start: np.ndarray
    """(S,) int64 first environment step of each segment in its episode."""
    stop: np.ndarray
    """(S,) int64 environment step after the last one of each segment."""
    position: np.ndarray
    """(S,) int64 shard position of each segment's first sample."""
    buffer_start: np.ndarray
    """(S,) int64 shard position of the first sample of each segment's shuffle buffer."""
    buffer_stop: np.ndarray
    """(S,) int64 shard position after the last sample of each segment's shuffle buffer."""
    order: np.ndarray
    """(V, M) int64 shard positions of each shard, in shuffled order."""
    first_segment: np.ndarray
    """(V + 1,) int64 index of the first segment of each shard, and S."""

    def locate(self, shard: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the segments (n,) and the episode steps (n,) of shard positions (n,)."""
        low, high = self.first_segment[shard], self.first_segment[shard + 1]
        segments = low + np.searchsorted(self.position[low:high], positions, side="right") - 1
        return segments, self.start[segments] + positions - self.position[segments]


@dataclass(frozen=True)
class SamplePlan:
    """Assigns samples to every global batch of a run. See the module for the terms.

    Args:
        lengths: number of environment steps of each training episode.
        batch_size: number of samples in a global batch.
        virtual_shards: number V of virtual shards, a divisor of the batch size (see
            `choose_virtual_shards`).
        read_block_steps: number of samples in a block.
        shuffle_buffer_blocks: number of segments in a shuffle buffer.
        seed: seed of the order of blocks and samples.

    Raises:
        UserError: there are fewer samples than one batch needs.
    """

    lengths: tuple[int, ...]
    batch_size: int
    virtual_shards: int
    read_block_steps: int
    shuffle_buffer_blocks: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_samples < self.batch_size:
            raise UserError(
                f"The training episodes have {self.num_samples} samples, fewer than "
                f"train.batch_size={self.batch_size}. Collect more episodes or lower the batch "
                "size."
            )

    @property
    def num_samples(self) -> int:
        """Number of samples in the data set, one for each step of each episode."""
        return sum(self.lengths)

    @property
    def steps_per_epoch(self) -> int:
        """Number of global batches, and thus training steps, in an epoch.

        Each epoch leaves out up to batch_size - 1 samples, different ones each time.
        """
        return self.num_samples // self.batch_size

    @property
    def samples_per_shard(self) -> int:
        """Number of samples that each global batch takes from each shard."""
        return self.batch_size // self.virtual_shards

    @property
    def sample_offsets(self) -> np.ndarray:
        """(E,) int64 sample id of the first step of each episode; step t has this id plus t."""
        return np.concatenate(([0], np.cumsum(self.lengths)[:-1])).astype(np.int64)

    def rank_shards(self, rank: int, world_size: int) -> range:
        """Return the virtual shards of a rank. Two ranks differ by at most one shard."""
        start, stop = (r * self.virtual_shards // world_size for r in (rank, rank + 1))
        return range(start, stop)

    def state_dict(self, step: int) -> dict[str, int | str]:
        """Return the position in the data after `step` updates.

        It determines all later samples.
        """
        epoch, batch_index = divmod(step, self.steps_per_epoch)
        return {
            "epoch": epoch,
            "batch": batch_index,
            "batch_size": self.batch_size,
            "virtual_shards": self.virtual_shards,
            "read_block_steps": self.read_block_steps,
            "shuffle_buffer_blocks": self.shuffle_buffer_blocks,
            "seed": self.seed,
            "samples": self.num_samples,
            "lengths": hashlib.sha256(repr(self.lengths).encode()).hexdigest()[:16],
        }

    def epoch(self, epoch: int) -> EpochPlan:
        """Return the plan of one epoch."""
        return _epoch_plan(self, epoch)

    def global_batch(self, step: int) -> np.ndarray:
        """Return the sample ids (batch_size,) of training step `step`, in the order of ranks."""
        epoch, batch_index = divmod(step, self.steps_per_epoch)
        plan = self.epoch(epoch)
        start = batch_index * self.samples_per_shard
        stop = start + self.samples_per_shard
        ids = []
        for shard in range(self.virtual_shards):
            segments, steps = plan.locate(shard, plan.order[shard, start:stop])
            ids.append(self.sample_offsets[plan.episode[segments]] + steps)
        return np.concatenate(ids)

    def rank_segments(
        self, rank: int, world_size: int, start_step: int, max_steps: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (epoch, indices of segments in the order in which the rank needs them).

        The segments are those of training steps [start_step, max_steps). A segment is left out if
        `start_step` and later steps take no sample from its shuffle buffer.
        """
        shards = self.rank_shards(rank, world_size)
        last_epoch = -(-max_steps // self.steps_per_epoch)
        for epoch in range(start_step // self.steps_per_epoch, last_epoch):
            plan = self.epoch(epoch)
            # Range of shard positions that these training steps use in this epoch.
            start = max(start_step - epoch * self.steps_per_epoch, 0) * self.samples_per_shard
            stop = (max_steps - epoch * self.steps_per_epoch) * self.samples_per_shard
            is_own = (plan.shard >= shards.start) & (plan.shard < shards.stop)
            segments = np.flatnonzero(
                is_own & (plan.buffer_stop > start) & (plan.buffer_start < stop)
            )
            # The first batch that uses a buffer may need any of its segments. The order is by this
            # batch, then by segment, which also sorts by shard.
            first_batch = np.maximum(plan.buffer_start[segments], start) // self.samples_per_shard
            yield epoch, segments[np.lexsort((segments, first_batch))]


def choose_virtual_shards(batch_size: int, world_size: int, requested: int | None) -> int:
    """Return the number of virtual shards: `requested`, or by default 8.

    The default is lower if the batch size is not a multiple of 8. It is higher if there are more
    than 8 workers.

    Args:
        batch_size: number of samples in a global batch.
        world_size: maximum number of workers of the run.
        requested: the configured number of virtual shards, or None.

    Raises:
        UserError: there are fewer shards than workers, or the batch size is not a multiple of them.
    """
    shards = requested or math.gcd(batch_size, DEFAULT_VIRTUAL_SHARDS)
    if requested is None and shards < world_size <= batch_size:
        shards = next(n for n in range(world_size, batch_size + 1) if batch_size % n == 0)
    if shards < world_size or batch_size % shards:
        raise UserError(
            f"train.batch_size={batch_size} cannot be divided among {shards} virtual shards and "
            f"cluster.num_workers={world_size}. It must be a multiple of the number of shards, and "
            "there must be at least as many shards as workers."
        )
    return shards


@functools.lru_cache(maxsize=4)
def _epoch_plan(plan: SamplePlan, epoch: int) -> EpochPlan:
    """Make the plan of one epoch."""
    episode, start, stop = _blocks(plan.lengths, plan.read_block_steps)
    order = np.random.default_rng([plan.seed, epoch, _BLOCK_ORDER]).permutation(len(episode))
    episode, start, stop = episode[order], start[order], stop[order]

    # Make segments by cutting the sequence of all samples at the edges of blocks and shards.
    shard_length = plan.steps_per_epoch * plan.samples_per_shard
    block_edges = np.concatenate(([0], np.cumsum(stop - start)))
    shard_edges = np.arange(plan.virtual_shards + 1) * shard_length
    edges = np.unique(np.concatenate((block_edges, shard_edges)))
    edges = edges[edges <= shard_edges[-1]]
    block = np.searchsorted(block_edges, edges[:-1], side="right") - 1
    shard = edges[:-1] // shard_length
    segment_start = start[block] + edges[:-1] - block_edges[block]
    position = edges[:-1] - shard_edges[shard]
    first_segment = np.searchsorted(shard, np.arange(plan.virtual_shards + 1))

    buffer = (np.arange(len(shard)) - first_segment[shard]) // plan.shuffle_buffer_blocks
    buffer_head = first_segment[shard] + buffer * plan.shuffle_buffer_blocks
    buffer_tail = np.minimum(buffer_head + plan.shuffle_buffer_blocks, first_segment[shard + 1])
    stop_position = position + np.diff(edges)
    buffer_start, buffer_stop = position[buffer_head], stop_position[buffer_tail - 1]

    shuffled = np.empty((plan.virtual_shards, shard_length), dtype=np.int64)
    for head in np.unique(buffer_head):
        low, high = buffer_start[head], buffer_stop[head]
        rng = np.random.default_rng(
            [plan.seed, epoch, _BUFFER_ORDER, int(shard[head]), int(buffer[head])]
        )
        shuffled[shard[head], low:high] = low + rng.permutation(high - low)
    return EpochPlan(
        shard=shard,
        episode=episode[block],
        start=segment_start,
        stop=segment_start + np.diff(edges),
        position=position,
        buffer_start=buffer_start,
        buffer_stop=buffer_stop,
        order=shuffled,
        first_segment=first_segment,
    )


def _blocks(
    lengths: tuple[int, ...], read_block_steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the episode, start and stop, each (B,) int64, of all blocks in order."""
    steps = np.array(lengths, dtype=np.int64)
    num_blocks = -(-steps // read_block_steps)
    episode = np.repeat(np.arange(len(steps)), num_blocks)
    first_block = np.cumsum(num_blocks) - num_blocks
    index_in_episode = np.arange(len(episode)) - np.repeat(first_block, num_blocks)
    start = index_in_episode * read_block_steps
    return episode, start, np.minimum(start + read_block_steps, steps[episode])
