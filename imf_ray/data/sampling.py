"""The order of samples: a pure function of (seed, epoch), the same for every world size.

A *sample* is one start step of one episode. Episodes are cut into *chunks* of consecutive starts;
an epoch permutes the chunks, lays their samples in one line and deals the line to V *virtual
shards* of equal length, as MosaicML Streaming's canonical nodes. A *row* is the part of a chunk
that fell to one shard: one read of one episode. Within a shard, `shuffle_buffer_blocks` consecutive rows
make a *pool*, whose samples are shuffled together. Each global batch takes the same number of
samples from every shard, shard by shard, and each rank owns V / world_size consecutive shards, as
evenly as that divides.
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
_CHUNK_ORDER, _POOL_ORDER = 0, 1  # tags that keep the two kinds of random streams apart


@dataclass(frozen=True)
class EpochPlan:
    """The rows and the sample order of one epoch.

    Row arrays are (R,) int64, ordered by shard and position: `shard`, `episode`, sample starts
    [`start`, `stop`) in the episode, `position` of the first one in the shard, and `pool_stop`,
    the shard position at which the row's pool is used up. `order` (V, M) holds, for each shard,
    the unshuffled shard position of the sample that is used at each place; M is the shard length.
    """

    shard: np.ndarray
    episode: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    position: np.ndarray
    pool_start: np.ndarray
    pool_stop: np.ndarray
    order: np.ndarray
    first_row: np.ndarray
    """(V + 1,) where each shard's rows begin."""

    def locate(self, shard: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows (n,) and start steps in their episodes (n,) of shard positions (n,)."""
        low, high = self.first_row[shard], self.first_row[shard + 1]
        rows = low + np.searchsorted(self.position[low:high], positions, side="right") - 1
        return rows, self.start[rows] + positions - self.position[rows]


@dataclass(frozen=True)
class SamplePlan:
    """What every global batch of a run consists of.

    Args:
        lengths: steps of each training episode.
        batch_size: samples in one global batch.
        virtual_shards: V, a divisor of the batch size (see `choose_virtual_shards`).
        read_block_steps: sample starts in a chunk.
        shuffle_buffer_blocks: rows of a shard that are shuffled together.
        seed: of the whole order.

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
        """Samples in the data set: every step of every episode starts one."""
        return sum(self.lengths)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch; up to batch_size - 1 samples, other ones each time, wait."""
        return self.num_samples // self.batch_size

    @property
    def samples_per_shard(self) -> int:
        """Samples that each global batch takes from each shard."""
        return self.batch_size // self.virtual_shards

    @property
    def sample_offsets(self) -> np.ndarray:
        """(E,) sample id of each episode's first step; a sample's id is that plus its step."""
        return np.concatenate(([0], np.cumsum(self.lengths)[:-1])).astype(np.int64)

    def rank_shards(self, rank: int, world_size: int) -> range:
        """The virtual shards that a rank owns: equally many, or one more on some ranks."""
        first, last = (r * self.virtual_shards // world_size for r in (rank, rank + 1))
        return range(first, last)

    def position(self, step: int) -> dict[str, int | str]:
        """Where in the samples a run is after `step` updates: those to come follow from it."""
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
        """(batch_size,) sample ids of global batch `step`, ranks side by side in their order."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        plan = self.epoch(epoch)
        take = slice(batch * self.samples_per_shard, (batch + 1) * self.samples_per_shard)
        ids = []
        for shard in range(self.virtual_shards):
            rows, steps = plan.locate(shard, plan.order[shard, take])
            ids.append(self.sample_offsets[plan.episode[rows]] + steps)
        return np.concatenate(ids)

    def rank_rows(
        self, rank: int, world_size: int, start_step: int, max_steps: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Pairs (epoch, row numbers in the order in which the rank needs them).

        The rows are those of global batches [start_step, max_steps); rows whose pool is used up
        before start_step are left out.
        """
        shards = self.rank_shards(rank, world_size)
        last_epoch = -(-max_steps // self.steps_per_epoch)
        for epoch in range(start_step // self.steps_per_epoch, last_epoch):
            plan = self.epoch(epoch)
            first = max(start_step - epoch * self.steps_per_epoch, 0) * self.samples_per_shard
            last = (max_steps - epoch * self.steps_per_epoch) * self.samples_per_shard
            mine = (plan.shard >= shards.start) & (plan.shard < shards.stop)
            rows = np.flatnonzero(mine & (plan.pool_stop > first) & (plan.pool_start < last))
            # A pool is needed when its first sample is: order by that batch, then by shard.
            needed = np.maximum(plan.pool_start[rows], first) // self.samples_per_shard
            yield epoch, rows[np.lexsort((rows, needed))]


def choose_virtual_shards(batch_size: int, world_size: int, wanted: int | None) -> int:
    """The number of virtual shards: as asked, or 8, fewer if the batch needs it, more if the
    workers do.

    Args:
        world_size: the largest of the run.

    Raises:
        UserError: no number of shards fits both the batch and the workers.
    """
    shards = wanted or math.gcd(batch_size, DEFAULT_VIRTUAL_SHARDS)
    if wanted is None and shards < world_size <= batch_size:
        shards = next(n for n in range(world_size, batch_size + 1) if batch_size % n == 0)
    if shards < world_size or batch_size % shards:
        raise UserError(
            f"train.batch_size={batch_size} cannot be dealt to {shards} virtual shards and "
            f"cluster.num_workers={world_size}: the batch must be a multiple of the shards, and "
            "these at least as many as the workers."
        )
    return shards


@functools.lru_cache(maxsize=4)
def _epoch_plan(plan: SamplePlan, epoch: int) -> EpochPlan:
    episode, start, stop = _chunks(plan.lengths, plan.read_block_steps)
    order = np.random.default_rng([plan.seed, epoch, _CHUNK_ORDER]).permutation(len(episode))
    episode, start, stop = episode[order], start[order], stop[order]

    # The line of all samples, cut where a chunk ends and where a shard ends.
    shard_length = plan.steps_per_epoch * plan.samples_per_shard
    chunk_edges = np.concatenate(([0], np.cumsum(stop - start)))
    shard_edges = np.arange(plan.virtual_shards + 1) * shard_length
    edges = np.unique(np.concatenate((chunk_edges, shard_edges)))
    edges = edges[edges <= shard_edges[-1]]
    chunk = np.searchsorted(chunk_edges, edges[:-1], side="right") - 1
    shard = edges[:-1] // shard_length
    row_start = start[chunk] + edges[:-1] - chunk_edges[chunk]
    position = edges[:-1] - shard_edges[shard]
    first_row = np.searchsorted(shard, np.arange(plan.virtual_shards + 1))

    pool = (np.arange(len(shard)) - first_row[shard]) // plan.shuffle_buffer_blocks
    pool_head = first_row[shard] + pool * plan.shuffle_buffer_blocks
    pool_tail = np.minimum(pool_head + plan.shuffle_buffer_blocks, first_row[shard + 1])
    row_stop_position = position + np.diff(edges)
    pool_start, pool_stop = position[pool_head], row_stop_position[pool_tail - 1]

    shuffled = np.empty((plan.virtual_shards, shard_length), dtype=np.int64)
    for head in np.unique(pool_head):
        low, high = pool_start[head], pool_stop[head]
        rng = np.random.default_rng(
            [plan.seed, epoch, _POOL_ORDER, int(shard[head]), int(pool[head])]
        )
        shuffled[shard[head], low:high] = low + rng.permutation(high - low)
    return EpochPlan(
        shard=shard,
        episode=episode[chunk],
        start=row_start,
        stop=row_start + np.diff(edges),
        position=position,
        pool_start=pool_start,
        pool_stop=pool_stop,
        order=shuffled,
        first_row=first_row,
    )


def _chunks(
    lengths: tuple[int, ...], read_block_steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Episode (C,), start (C,) and stop (C,) of all chunks, in order."""
    steps = np.array(lengths, dtype=np.int64)
    counts = -(-steps // read_block_steps)
    episode = np.repeat(np.arange(len(steps)), counts)
    number = np.arange(len(episode)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = number * read_block_steps
    return episode, start, np.minimum(start + read_block_steps, steps[episode])
