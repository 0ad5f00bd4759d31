"""The order of samples: a pure function of (seed, epoch), the same for every world size.

Vocabulary:

* A *sample* is one start step of one episode.
* A *block* is a run of `read_block_steps` consecutive samples of one episode.
* A *virtual shard* is one of V equal parts of an epoch, after the canonical nodes of MosaicML
  Streaming. V is fixed for a run, while the number of ranks may change.
* A *segment* is the part of a block that falls into one shard. It is one row of the Ray dataset
  and one read of one episode.
* A *shuffle buffer* is `shuffle_buffer_blocks` consecutive segments of a shard, whose samples are
  shuffled together.

An epoch permutes the blocks, concatenates their samples and divides the sequence among the shards.
Each global batch takes the same number of samples from every shard, shard by shard. Each rank owns
V / world_size consecutive shards, or one more on some ranks if V is not a multiple.
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
_BLOCK_ORDER, _BUFFER_ORDER = 0, 1  # seeds of two independent kinds of random streams


@dataclass(frozen=True)
class EpochPlan:
    """Segments and sample order of one epoch.

    A shard position counts the samples of a shard before shuffling. M is the shard length.
    """

    shard: np.ndarray
    """(S,) int64 shard of each segment; segments are ordered by shard and position."""
    episode: np.ndarray
    """(S,) int64 episode of each segment."""
    start: np.ndarray
    """(S,) int64 first step of each segment in its episode."""
    stop: np.ndarray
    """(S,) int64 end of each segment in its episode, exclusive."""
    position: np.ndarray
    """(S,) int64 shard position of each segment's first sample."""
    buffer_start: np.ndarray
    """(S,) int64 shard position at which each segment's shuffle buffer starts."""
    buffer_stop: np.ndarray
    """(S,) int64 shard position at which each segment's shuffle buffer is used up."""
    order: np.ndarray
    """(V, M) int64 shard positions in the shuffled order."""
    first_segment: np.ndarray
    """(V + 1,) int64 first segment of each shard."""

    def locate(self, shard: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Segments (n,) and episode steps (n,) of shard positions (n,)."""
        low, high = self.first_segment[shard], self.first_segment[shard + 1]
        segments = low + np.searchsorted(self.position[low:high], positions, side="right") - 1
        return segments, self.start[segments] + positions - self.position[segments]


@dataclass(frozen=True)
class SamplePlan:
    """Content of every global batch of a run.

    Args:
        lengths: steps of each training episode.
        batch_size: samples in one global batch.
        virtual_shards: V, a divisor of the batch size (see `choose_virtual_shards`).
        read_block_steps: samples in a block.
        shuffle_buffer_blocks: segments in a shuffle buffer.
        seed: seed of the whole order.

    Raises:
        UserError: there are fewer samples than one batch takes.
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
                f"The training episodes hold {self.num_samples} samples, fewer than "
                f"train.batch_size={self.batch_size}: collect more or lower the batch size."
            )

    @property
    def num_samples(self) -> int:
        """Samples in the data set; every step of every episode starts one."""
        return sum(self.lengths)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch. Up to batch_size - 1 samples, others each epoch, are left."""
        return self.num_samples // self.batch_size

    @property
    def samples_per_shard(self) -> int:
        """Samples that each global batch takes from each shard."""
        return self.batch_size // self.virtual_shards

    @property
    def sample_offsets(self) -> np.ndarray:
        """(E,) sample id of each episode's first step; add the step for a sample's id."""
        return np.concatenate(([0], np.cumsum(self.lengths)[:-1])).astype(np.int64)

    def rank_shards(self, rank: int, world_size: int) -> range:
        """The virtual shards of a rank; the numbers of two ranks differ by at most one."""
        first, last = (r * self.virtual_shards // world_size for r in (rank, rank + 1))
        return range(first, last)

    def state_dict(self, step: int) -> dict[str, int | str]:
        """The position in the data after `step` updates; it determines all later samples."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return {
            "epoch": epoch,
            "batch": batch,
            "batch_size": self.batch_size,
            "virtual_shards": self.virtual_shards,
            "read_block_steps": self.read_block_steps,
            "shuffle_buffer_blocks": self.shuffle_buffer_blocks,
            "seed": self.seed,
            "samples": self.num_samples,
            "lengths": hashlib.sha256(repr(self.lengths).encode()).hexdigest()[:16],
        }

    def epoch(self, epoch: int) -> EpochPlan:
        """The plan of one epoch."""
        return _epoch_plan(self, epoch)

    def global_batch(self, step: int) -> np.ndarray:
        """(batch_size,) sample ids of global batch `step`, concatenated in the order of ranks."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        plan = self.epoch(epoch)
        batch_slice = slice(batch * self.samples_per_shard, (batch + 1) * self.samples_per_shard)
        ids = []
        for shard in range(self.virtual_shards):
            segments, steps = plan.locate(shard, plan.order[shard, batch_slice])
            ids.append(self.sample_offsets[plan.episode[segments]] + steps)
        return np.concatenate(ids)

    def rank_segments(
        self, rank: int, world_size: int, start_step: int, max_steps: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (epoch, segment numbers in the order in which the rank needs them).

        The segments are those of global batches [start_step, max_steps). Segments whose shuffle
        buffer is used up before `start_step` are left out.
        """
        shards = self.rank_shards(rank, world_size)
        last_epoch = -(-max_steps // self.steps_per_epoch)
        for epoch in range(start_step // self.steps_per_epoch, last_epoch):
            plan = self.epoch(epoch)
            first = max(start_step - epoch * self.steps_per_epoch, 0) * self.samples_per_shard
            last = (max_steps - epoch * self.steps_per_epoch) * self.samples_per_shard
            is_own = (plan.shard >= shards.start) & (plan.shard < shards.stop)
            segments = np.flatnonzero(
                is_own & (plan.buffer_stop > first) & (plan.buffer_start < last)
            )
            # A whole buffer is needed by the batch of its first sample. Order by batch and shard.
            batch = np.maximum(plan.buffer_start[segments], first) // self.samples_per_shard
            yield epoch, segments[np.lexsort((segments, batch))]


def choose_virtual_shards(batch_size: int, world_size: int, requested: int | None) -> int:
    """The number of virtual shards: `requested`, or by default 8.

    The default is lower for a batch that 8 does not divide, and higher for more than 8 workers.

    Args:
        world_size: the largest world size of the run.

    Raises:
        UserError: no number of shards fits both the batch and the workers.
    """
    shards = requested or math.gcd(batch_size, DEFAULT_VIRTUAL_SHARDS)
    if requested is None and shards < world_size <= batch_size:
        shards = next(n for n in range(world_size, batch_size + 1) if batch_size % n == 0)
    if shards < world_size or batch_size % shards:
        raise UserError(
            f"train.batch_size={batch_size} cannot be divided among {shards} virtual shards and "
            f"cluster.num_workers={world_size}: the batch must be a multiple of the shards, and "
            "there must be at least as many shards as workers."
        )
    return shards


@functools.lru_cache(maxsize=4)
def _epoch_plan(plan: SamplePlan, epoch: int) -> EpochPlan:
    episode, start, stop = _blocks(plan.lengths, plan.read_block_steps)
    order = np.random.default_rng([plan.seed, epoch, _BLOCK_ORDER]).permutation(len(episode))
    episode, start, stop = episode[order], start[order], stop[order]

    # Segments: the sequence of all samples, cut at the ends of blocks and of shards.
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
    """Episode, start and stop, each (B,) int64, of all blocks in order."""
    steps = np.array(lengths, dtype=np.int64)
    counts = -(-steps // read_block_steps)
    episode = np.repeat(np.arange(len(steps)), counts)
    number = np.arange(len(episode)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = number * read_block_steps
    return episode, start, np.minimum(start + read_block_steps, steps[episode])
