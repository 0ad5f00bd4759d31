"""The Ray Data pipeline: rows of the sample plan, read in order, one ordered dataset a rank.

Ray Data splits a dataset among ranks in whatever order blocks come, and replays an epoch from its
start after a failure. Here each rank gets a dataset of its own, whose read tasks are the rank's
rows from the plan, from the step at which training goes on to the last; the order of execution is
preserved, and one execution spans all epochs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import ray.train
from ray.data import ExecutionResources
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from imf_ray.data.episodes import EpisodeRef, EpisodeSlice
from imf_ray.data.sampling import SamplePlan
from imf_ray.data.windows import Batch, WindowBatcher, WindowSpec

MIN_ROWS_PER_TASK, MAX_ROWS_PER_TASK, TASK_BYTES = 4, 16, 32 << 20
"""A read task has as many rows as make so many bytes, within limits: to begin one takes as long as
to read some small rows, and what a task of large ones has read waits in memory."""
PREFETCH_BUFFERS = 2
MIN_PREFETCH_BYTES = 1 << 20
"""For rows without pictures: to Ray, zero would be a limit, too."""
MAX_TASKS = 4096
"""Read tasks of one rank; Ray Data handles each one by itself, so long runs get larger ones."""
DATASET_NAME = "train"
MAX_LOOP_CPU_FRACTION, MAX_SLEEP_S, THROTTLE_AFTER_ITERATIONS = 0.03, 0.1, 3
"""Of a core, what Ray Data's scheduling loop may take once blocks have waited for so many of its
steps: training is slower than reading then."""


@dataclass(frozen=True)
class TrainDataset:
    """The training data of a run, whatever its world size.

    `episodes` are those of the plan's lengths, in that order; `frame_bytes` is what
    the pictures of one step take; `readers` is the number of parallel read tasks of each rank, and
    `options` are Ray's for each.
    """

    plan: SamplePlan
    spec: WindowSpec
    episodes: tuple[EpisodeRef, ...]
    frame_bytes: int
    max_steps: int
    readers: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def rank_dataset(self, rank: int, world_size: int, start_step: int) -> ray.data.Dataset:
        """The rows of one rank, from the batch of `start_step` to the last."""
        rows = self.plan.rank_rows(rank, world_size, start_step, self.max_steps)
        source = _BlockDatasource(self, [(epoch, numbers) for epoch, numbers in rows])
        dataset = ray.data.read_datasource(
            source,
            num_cpus=0,  # see imf_ray.allocation
            concurrency=self.readers,
            override_num_blocks=source.num_tasks,
            ray_remote_args=dict(self.options),
        )
        execution = dataset.context.execution_options
        execution.preserve_order = True
        ahead = max(MIN_PREFETCH_BYTES, self.rows_ahead(rank, world_size) * self._row_bytes)
        execution.resource_limits = ExecutionResources(object_store_memory=ahead)
        dataset.context.enable_progress_bars = False
        dataset.context.custom_execution_callback_classes = [_SchedulerThrottle]
        return dataset

    def rows_ahead(self, rank: int, world_size: int) -> int:
        """How many rows may wait for a rank; by itself, Ray Data fills half of the object store.

        Every shard may need a whole new pool at once, and the next one should then be on its way.
        """
        waiting = (
            PREFETCH_BUFFERS
            * len(self.plan.rank_shards(rank, world_size))
            * self.plan.shuffle_buffer_blocks
        )
        return waiting + self.readers * self.rows_per_task

    @property
    def rows_per_task(self) -> int:
        """Rows of a read task, of which a long run may need larger ones."""
        wanted = TASK_BYTES // max(1, self._row_bytes)
        return max(MIN_ROWS_PER_TASK, min(wanted, MAX_ROWS_PER_TASK))

    @property
    def _row_bytes(self) -> int:
        return self.frame_bytes * (self.plan.read_block_steps + self.spec.obs_horizon - 1)

    def batches(
        self, iterator: ray.data.DataIterator, rank: int, world_size: int, start_step: int
    ) -> Iterator[Batch]:
        """The rank's batches from its dataset's iterator (see `WindowBatcher.batches`)."""
        blocks = iterator.iter_batches(batch_size=None, batch_format="pyarrow")
        batcher = WindowBatcher(self.plan, self.spec, rank, world_size)
        return _prefetch_one(batcher.batches(_table_rows(blocks), start_step, self.max_steps))


class PerRankDataConfig(ray.train.DataConfig):
    """Gives each rank its own ordered dataset, beginning where training goes on.

    Args:
        find_start_step: returns the step of the checkpoint that the workers will load; called at
            every start of the worker group.
    """

    def __init__(self, find_start_step: Callable[[], int]) -> None:
        super().__init__()
        self._find_start_step = find_start_step

    def configure(
        self, datasets: dict[str, Any], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, ray.data.DataIterator]]:
        """Called by Ray Train; `datasets` holds one `TrainDataset` a name."""
        start_step = self._find_start_step()
        return [
            {
                name: stream.rank_dataset(rank, world_size, start_step).iterator()
                for name, stream in datasets.items()
            }
            for rank in range(world_size)
        ]


def _prefetch_one(items: Iterator[Batch]) -> Iterator[Batch]:
    """The same items, each made in a thread while the one before it is in use."""
    maker = ThreadPoolExecutor(1)
    try:
        coming = maker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = maker.submit(next, items, None)
            yield item
    finally:
        maker.shutdown(wait=False, cancel_futures=True)  # who leaves early need not wait for one


class _SchedulerThrottle(ExecutionCallback):
    """Rests after a step of Ray Data's scheduling loop while blocks go on waiting, many times as
    long as the step kept its core.

    A read task whose output is held back counts as ready at once, so that the loop, which runs in
    the training process, would otherwise turn without a pause and take half of its core.
    """

    def __init__(self) -> None:
        self._spent_s, self._steps_waiting = 0.0, 0

    def on_execution_step(self, executor: Any) -> None:
        spent_s = time.thread_time()
        rest_s = (spent_s - self._spent_s) * (1 / MAX_LOOP_CPU_FRACTION - 1)
        self._spent_s = spent_s
        _, output = executor._output_node  # no public name for it (Ray 2.60)
        self._steps_waiting = self._steps_waiting + 1 if len(output.output_queue) else 0
        if self._steps_waiting >= THROTTLE_AFTER_ITERATIONS:
            time.sleep(min(MAX_SLEEP_S, rest_s))


class _BlockDatasource(Datasource):
    """Read tasks over an explicit list of rows; planning does no I/O."""

    def __init__(self, stream: TrainDataset, rows: list[tuple[int, np.ndarray]]) -> None:
        super().__init__()
        size = max(stream.rows_per_task, sum(len(numbers) for _, numbers in rows) // MAX_TASKS)
        self._tasks = [
            _read_task(stream, epoch, numbers[first : first + size])
            for epoch, numbers in rows
            for first in range(0, len(numbers), size)
        ]

    @property
    def num_tasks(self) -> int:
        return max(1, len(self._tasks))

    def get_name(self) -> str:
        return "EpisodeRows"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        return self._tasks


def _read_task(stream: TrainDataset, epoch: int, numbers: np.ndarray) -> ReadTask:
    plan, spec = stream.plan.epoch(epoch), stream.spec
    rows = [
        (
            int(number),
            stream.episodes[plan.episode[number]],
            int(plan.start[number]),
            int(plan.stop[number]),
        )
        for number in numbers
    ]
    metadata = BlockMetadata(num_rows=len(rows), size_bytes=None, input_files=None, exec_stats=None)
    return ReadTask(lambda: _read_rows(spec, epoch, rows), metadata)


def _read_rows(
    spec: WindowSpec, epoch: int, rows: list[tuple[int, EpisodeRef, int, int]]
) -> Iterator[pa.Table]:
    for number, episode, start, stop in rows:
        yield _to_table(epoch, number, spec.read(episode, start, stop))


def _to_table(epoch: int, number: int, source: EpisodeSlice) -> pa.Table:
    """One row: scalars, and each array as its bytes and shape (Ray's tensors cannot be ragged)."""
    scalars = {
        "epoch": epoch,
        "row": number,
        "length": source.length,
        "frame_start": source.frame_start,
        "action_start": source.action_start,
    }
    columns = {name: pa.array([value], pa.int64()) for name, value in scalars.items()}
    arrays = {f"images/{camera}": frames for camera, frames in source.images.items()}
    for name, array in {**arrays, "qpos": source.qpos, "action": source.action}.items():
        columns[name] = _bytes_of(array)
        columns[f"shape:{name}"] = pa.array([list(array.shape)], pa.list_(pa.int64()))
    return pa.table(columns)


def _bytes_of(array: np.ndarray) -> pa.Array:
    """The bytes of an array as one value of a column, without a copy.

    `pa.array` of a memoryview would copy them, and never let go of the array (pyarrow 26.0).
    """
    content = pa.py_buffer(np.ascontiguousarray(array))
    ends = pa.py_buffer(np.array([0, content.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, content])


def _table_rows(tables: Iterable[pa.Table]) -> Iterator[tuple[int, int, EpisodeSlice]]:
    for table in tables:
        for place in range(table.num_rows):
            row = table.slice(place, 1)
            scalar = {
                name: row[name][0].as_py()
                for name in ("epoch", "row", "length", "frame_start", "action_start")
            }
            images = {
                name.removeprefix("images/"): _array(row, name, np.uint8)
                for name in row.column_names
                if name.startswith("images/")
            }
            yield (
                scalar["epoch"],
                scalar["row"],
                EpisodeSlice(
                    length=scalar["length"],
                    frame_start=scalar["frame_start"],
                    action_start=scalar["action_start"],
                    images=images,
                    qpos=_array(row, "qpos", np.float32),
                    action=_array(row, "action", np.float32),
                ),
            )


def _array(row: pa.Table, name: str, dtype: type) -> np.ndarray:
    """The array behind a bytes column, without a copy."""
    return np.frombuffer(row[name][0].as_buffer(), dtype).reshape(row[f"shape:{name}"][0].as_py())
