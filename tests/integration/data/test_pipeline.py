"""The Ray Data pipeline: slices of episodes as rows of a dataset, and batches of windows.

A row contains one slice: the images, states and actions of a segment, i.e. of consecutive steps.
"""

import dataclasses
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imf_ray.data.episodes import EpisodeFields, EpisodeRef, EpisodeSlice, episode_path
from imf_ray.data.pipeline import TrainDataset, _prefetch_one, _read_tables, _to_table
from imf_ray.data.sampling import SamplePlan
from imf_ray.data.windows import Batch, WindowSpec
from testing_support.episodes import episode_refs

SETTLED_S = 3.0
"""Seconds without a new row after which reading counts as paused."""


def _slice(frames: int, actions: int) -> EpisodeSlice:
    rng = np.random.default_rng(frames)
    return EpisodeSlice(
        length=400,
        frame_start=3,
        action_start=2,
        images={"top": rng.integers(0, 256, (frames, 5, 7, 3), dtype=np.uint8)},
        qpos=rng.normal(size=(frames, 4)).astype(np.float32),
        object_poses={
            name: rng.normal(size=(frames, 7)).astype(np.float32) for name in ("cube", "peg")
        },
        action=rng.normal(size=(actions, 6)).astype(np.float32),
    )


@given(frames=st.integers(1, 9), actions=st.integers(1, 9))
def test_a_row_contains_its_slice_unchanged(frames: int, actions: int) -> None:
    source = _slice(frames, actions)
    ((epoch, segment, received),) = _read_tables([_to_table(5, 7, source)])
    assert (epoch, segment) == (5, 7)
    assert (received.length, received.frame_start, received.action_start) == (400, 3, 2)
    np.testing.assert_array_equal(received.images["top"], source.images["top"])
    np.testing.assert_array_equal(received.qpos, source.qpos)
    assert list(received.object_poses) == ["cube", "peg"]
    for name, poses in source.object_poses.items():
        np.testing.assert_array_equal(received.object_poses[name], poses)
    np.testing.assert_array_equal(received.action, source.action)


def test_exactly_one_batch_is_prefetched() -> None:
    """The first one is computed before the caller asks for it."""
    made: list[int] = []
    begun = threading.Event()

    def items() -> Iterator[Batch]:
        for number in range(6):
            made.append(number)
            begun.set()
            yield {"action": np.array([number])}

    batches = _prefetch_one(items())
    assert begun.wait(timeout=60)
    for number, batch in enumerate(batches):
        assert batch["action"] == [number]
        assert number < len(made) <= number + 2
    assert len(made) == 6


def test_an_error_while_prefetching_is_raised_after_earlier_batches() -> None:
    def broken() -> Iterator[Batch]:
        yield {"action": np.zeros(1)}
        raise RuntimeError("no more rows")

    batches = _prefetch_one(broken())
    next(batches)
    with pytest.raises(RuntimeError, match="no more rows"):
        next(batches)


@dataclass(frozen=True)
class _CountingSpec(WindowSpec):
    """A spec that creates a file for each row it reads, and fails if a row is read twice."""

    folder: str = ""

    def read(self, episode: EpisodeRef, start: int, stop: int) -> EpisodeSlice:
        (Path(self.folder) / f"{Path(episode.path).stem}-{start}").touch(exist_ok=False)
        return super().read(episode, start, stop)


@pytest.mark.parametrize("cameras", [("top",), ()], ids=["a camera", "states only"])
def test_reading_pauses_while_training_is_slow(
    demonstrations: Path, tmp_path: Path, ray_cluster: None, cameras: tuple[str, ...]
) -> None:
    paths = [episode_path(demonstrations, number) for number in range(3)]
    plan = SamplePlan((400, 400, 400), 8, 1, read_block_steps=4, shuffle_buffer_blocks=2, seed=0)
    rows = 3 * 400 // 4
    dataset = TrainDataset(
        plan=plan,
        spec=_CountingSpec(EpisodeFields(cameras), 2, 4, str(tmp_path)),
        episodes=episode_refs(paths),
        frame_bytes=48 * 48 * 3 * len(cameras),
        max_steps=plan.steps_per_epoch,
        read_concurrency=1,
        name="Übung" * 40,  # Ray Data names a log file and tags metrics after the dataset
    )
    batches = dataset.batches(0, 1, 0)
    next(batches)
    num_read, num_before = len(list(tmp_path.iterdir())), 0
    while num_read > num_before:
        time.sleep(SETTLED_S)
        num_before, num_read = num_read, len(list(tmp_path.iterdir()))
    if cameras:
        # The limit counts waiting rows. A task reads all its rows, and some rows are consumed.
        assert num_read <= 4 * dataset.prefetch_rows(0, 1) < rows // 3
    else:  # rows without images need little memory, so all of them are read ahead
        while len(list(tmp_path.iterdir())) < rows:
            time.sleep(SETTLED_S)
    assert sum(1 for _ in batches) == plan.steps_per_epoch - 1
    assert len(list(tmp_path.iterdir())) == rows


def test_a_deleted_row_releases_its_images() -> None:
    images = _slice(4, 4).images["top"]
    source = dataclasses.replace(_slice(4, 4), images={"top": images})
    before = sys.getrefcount(images)
    table = _to_table(0, 0, source)
    del table
    after = sys.getrefcount(images)  # outside of the assertion, which would keep references
    assert after == before
