"""The Ray Data pipeline: one ordered dataset per rank (training worker).

Each row is a slice: the images, states and actions of one segment, which consists of consecutive
samples of one episode. See `imf_ray.data.sampling` for the terms.

Ray Data's own splitting would give each rank whatever is read first, and would replay an epoch from
its start after a failure. Here each rank has its own dataset instead. The dataset reads the rank's
segments in the order of the plan, from the training step that the run resumes at to the last one.
One execution of the dataset spans all epochs and preserves the order.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ExecutionResources
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from imf_ray.data.episodes import EpisodeRef, EpisodeSlice
from imf_ray.data.sampling import SamplePlan
from imf_ray.data.windows import Batch, WindowBatcher, WindowSpec
from imf_ray.metrics_export import RANK, MetricExporter
from imf_ray.ray_internals import ExecutionCallback, metric_tag, num_queued_outputs

MIN_ROWS_PER_TASK, MAX_ROWS_PER_TASK, TASK_BYTES = 4, 16, 32 << 20
"""Rows (slices) of a read task: as many as fit into 32 MiB, but at least 4 and at most 16.

With fewer rows, starting the tasks takes too much of the time. With more, a task needs more memory.
"""
PREFETCH_BUFFERS = 2
"""Number of shuffle buffers per virtual shard that may be read ahead: the next two.

A shuffle buffer consists of the segments of a shard whose samples are shuffled together.
"""
MIN_PREFETCH_BYTES = 1 << 20
"""Minimum of a dataset's object store limit. Rows without images would make the limit zero."""
MAX_TASKS = 4096
"""Approximate maximum number of read tasks per rank.

Ray Data keeps track of each task, so a long run has larger tasks instead of more.
"""
MAX_NAME_LENGTH = 100
"""Maximum length of a run's name in the name of a dataset, which is part of a file name of Ray."""
MAX_LOOP_CPU_FRACTION, MAX_SLEEP_S, THROTTLE_AFTER_ITERATIONS = 0.03, 0.1, 3
"""CPU share (3 %) of Ray Data's scheduling loop while it is throttled, maximum sleep per iteration
in seconds, and number of iterations with waiting output after which it is throttled.

Output waits if training is slower than reading.
"""
_SCALARS = ("epoch", "segment", "length", "frame_start", "action_start")
_IMAGES, _POSES = "images/", "object_poses/"  # prefixes of column names


@dataclass(frozen=True)
class TrainDataset:
    """The training data of a run, for any world size.

    Args:
        plan: assigns samples to each global batch.
        spec: contents of the windows.
        episodes: one per entry of the plan's `lengths`, in that order.
        frame_bytes: size in bytes of the images of one environment step.
        max_steps: number of updates of the run.
        read_concurrency: number of parallel read tasks of each rank.
        options: Ray options of each read task.
        name: name of the run, for the names of tasks and metrics.
        metric_tags: tags of the run's metrics.
    """

    plan: SamplePlan
    spec: WindowSpec
    episodes: tuple[EpisodeRef, ...]
    frame_bytes: int
    max_steps: int
    read_concurrency: int
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    metric_tags: Mapping[str, str] = field(default_factory=dict)

    def rank_dataset(self, rank: int, world_size: int, start_step: int) -> ray.data.Dataset:
        """Return the dataset of one rank, from training step `start_step` to the last."""
        segments = list(self.plan.rank_segments(rank, world_size, start_step, self.max_steps))
        # Ray Data tags metrics with the name, and uses it as a format of log lines.
        ascii_name = metric_tag(self.name).replace("%", "_")
        name = f"{ascii_name[:MAX_NAME_LENGTH]} rank {rank}"
        exporter = MetricExporter({**self.metric_tags, RANK: str(rank)})
        source = _SegmentDatasource(self, segments, name, exporter)
        dataset = ray.data.read_datasource(
            source,
            num_cpus=0,  # see imf_ray.allocation
            concurrency=self.read_concurrency,
            override_num_blocks=source.num_tasks,
            ray_remote_args=dict(self.options),
        )
        dataset.set_name(name)
        execution = dataset.context.execution_options
        execution.preserve_order = True
        prefetch = max(MIN_PREFETCH_BYTES, self.prefetch_rows(rank, world_size) * self._row_bytes)
        execution.resource_limits = ExecutionResources(object_store_memory=prefetch)
        dataset.context.enable_progress_bars = False
        throttle = functools.partial(_SchedulerThrottle, exporter)
        dataset.context.custom_execution_callback_classes = [throttle]
        return dataset

    def prefetch_rows(self, rank: int, world_size: int) -> int:
        """Return the number of rows that may be read ahead for a rank.

        Without a limit, Ray Data would fill half of the object store. All shards of a rank may need
        a new shuffle buffer at the same time, and each next buffer is read ahead as well.
        """
        buffered = (
            PREFETCH_BUFFERS
            * len(self.plan.rank_shards(rank, world_size))
            * self.plan.shuffle_buffer_blocks
        )
        return buffered + self.read_concurrency * self.rows_per_task

    @property
    def rows_per_task(self) -> int:
        """Number of rows of a read task. `_SegmentDatasource` increases it for long runs."""
        rows = TASK_BYTES // max(1, self._row_bytes)
        return max(MIN_ROWS_PER_TASK, min(rows, MAX_ROWS_PER_TASK))

    @property
    def _row_bytes(self) -> int:
        return self.frame_bytes * (self.plan.read_block_steps + self.spec.obs_horizon - 1)

    def batches(self, rank: int, world_size: int, start_step: int) -> Iterator[Batch]:
        """Return the batches of one rank, from training step `start_step` to the last.

        The first batch is read at once, while the caller does other things.
        """
        return _prefetch_one(self._read_batches(rank, world_size, start_step))

    def _read_batches(self, rank: int, world_size: int, start_step: int) -> Iterator[Batch]:
        dataset = self.rank_dataset(rank, world_size, start_step)
        tables = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
        batcher = WindowBatcher(self.plan, self.spec, rank, world_size)
        yield from batcher.batches(_read_tables(tables), start_step, self.max_steps)


def _prefetch_one(items: Iterator[Batch]) -> Iterator[Batch]:
    """Return the same items; a thread computes each one before the caller asks for it."""
    executor = ThreadPoolExecutor(1)
    return _with_next_item(items, executor, executor.submit(next, items, None))


def _with_next_item(
    items: Iterator[Batch], executor: ThreadPoolExecutor, next_item: Future[Batch | None]
) -> Iterator[Batch]:
    """Yield items, and compute the next one while the caller uses this one."""
    try:
        while (item := next_item.result()) is not None:
            next_item = executor.submit(next, items, None)
            yield item
    finally:
        # If the caller stops early, it does not wait for the item that is being computed.
        executor.shutdown(wait=False, cancel_futures=True)


class _SchedulerThrottle(ExecutionCallback):
    """Throttles Ray Data's scheduling loop while output is waiting.

    Ray Data treats a read task whose output is held back as ready. The scheduling loop, a thread of
    the training process, then polls without a pause and takes half of a core. This callback sleeps
    after each iteration, in proportion to the CPU time of that iteration.
    """

    def __init__(self, exporter: MetricExporter) -> None:
        self._exporter = exporter
        self._cpu_time_s, self._iterations_waiting = 0.0, 0

    def on_execution_step(self, executor: Any) -> None:
        cpu_time_s = time.thread_time()
        sleep_s = (cpu_time_s - self._cpu_time_s) * (1 / MAX_LOOP_CPU_FRACTION - 1)
        self._cpu_time_s = cpu_time_s
        num_queued = num_queued_outputs(executor)
        self._exporter.set({"data_queued_blocks": num_queued})
        is_waiting = num_queued > 0
        self._iterations_waiting = self._iterations_waiting + 1 if is_waiting else 0
        if self._iterations_waiting >= THROTTLE_AFTER_ITERATIONS:
            time.sleep(min(MAX_SLEEP_S, sleep_s))


class _SegmentDatasource(Datasource):
    """Reads the segments given as pairs (epoch, segment indices); making its tasks does no I/O."""

    def __init__(
        self,
        dataset: TrainDataset,
        segments: list[tuple[int, np.ndarray]],
        name: str,
        exporter: MetricExporter,
    ) -> None:
        super().__init__()
        self._name = name
        num_rows = sum(len(indices) for _, indices in segments)
        rows_per_task = max(dataset.rows_per_task, num_rows // MAX_TASKS)
        self._tasks = [
            _make_read_task(dataset, epoch, indices[start : start + rows_per_task], exporter)
            for epoch, indices in segments
            for start in range(0, len(indices), rows_per_task)
        ]

    @property
    def num_tasks(self) -> int:
        return max(1, len(self._tasks))

    def get_name(self) -> str:
        return f" {self._name}"  # the dashboard shows read tasks as "Read NAME"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        return self._tasks


def _make_read_task(
    dataset: TrainDataset, epoch: int, segment_indices: np.ndarray, exporter: MetricExporter
) -> ReadTask:
    """Make the read task that yields a table with one row for each segment."""
    plan, spec = dataset.plan.epoch(epoch), dataset.spec
    segments = [
        (
            int(index),
            dataset.episodes[plan.episode[index]],
            int(plan.start[index]),
            int(plan.stop[index]),
        )
        for index in segment_indices
    ]
    metadata = BlockMetadata(
        num_rows=len(segments), size_bytes=None, input_files=None, exec_stats=None
    )
    return ReadTask(lambda: _read_segments(spec, epoch, segments, exporter), metadata)


def _read_segments(
    spec: WindowSpec,
    epoch: int,
    segments: list[tuple[int, EpisodeRef, int, int]],
    exporter: MetricExporter,
) -> Iterator[pa.Table]:
    for index, episode, start, stop in segments:
        with exporter.timed("data_read_seconds"):
            table = _to_table(epoch, index, spec.read(episode, start, stop))
        exporter.count("data_read_bytes_total", table.nbytes)
        yield table


def _to_table(epoch: int, segment: int, source: EpisodeSlice) -> pa.Table:
    """Return a table with one row: the numbers of a slice, and its arrays as bytes and shape.

    Ray's tensor columns require arrays of equal shape, which slices do not have.
    """
    values = (epoch, segment, source.length, source.frame_start, source.action_start)
    columns = {
        name: pa.array([value], pa.int64()) for name, value in zip(_SCALARS, values, strict=True)
    }
    arrays = {
        **{f"{_IMAGES}{camera}": frames for camera, frames in source.images.items()},
        **{f"{_POSES}{name}": poses for name, poses in source.object_poses.items()},
        "qpos": source.qpos,
        "action": source.action,
    }
    for name, array in arrays.items():
        columns[name] = _bytes_column(array)
        columns[f"shape:{name}"] = pa.array([list(array.shape)], pa.list_(pa.int64()))
    return pa.table(columns)


def _bytes_column(array: np.ndarray) -> pa.Array:
    """Return a column whose single value is the bytes of an array, without a copy.

    `pa.array` of a memoryview would copy the bytes and never release the array (pyarrow 26.0).
    """
    content = pa.py_buffer(np.ascontiguousarray(array))
    offsets = pa.py_buffer(np.array([0, content.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, content])


def _read_tables(tables: Iterable[pa.Table]) -> Iterator[tuple[int, int, EpisodeSlice]]:
    """Yield (epoch, segment index, slice) for each row of each table."""
    for table in tables:
        for index in range(table.num_rows):
            row = table.slice(index, 1)
            scalars = {name: row[name][0].as_py() for name in _SCALARS}
            source = EpisodeSlice(
                length=scalars["length"],
                frame_start=scalars["frame_start"],
                action_start=scalars["action_start"],
                images=_arrays(row, _IMAGES, np.uint8),
                qpos=_array(row, "qpos", np.float32),
                object_poses=_arrays(row, _POSES, np.float32),
                action=_array(row, "action", np.float32),
            )
            yield scalars["epoch"], scalars["segment"], source


def _arrays(row: pa.Table, prefix: str, dtype: type) -> dict[str, np.ndarray]:
    """Return the arrays of all columns whose name starts with `prefix`, by the rest of the name."""
    return {
        name.removeprefix(prefix): _array(row, name, dtype)
        for name in row.column_names
        if name.startswith(prefix)
    }


def _array(row: pa.Table, name: str, dtype: type) -> np.ndarray:
    """Return the array stored in a column of bytes, without a copy."""
    return np.frombuffer(row[name][0].as_buffer(), dtype).reshape(row[f"shape:{name}"][0].as_py())
