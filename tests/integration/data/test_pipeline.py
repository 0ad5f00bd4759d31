"""Rows on their way through Ray Data."""

import dataclasses
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.loaders import sources_of
from imf_ray.data.episodes import EpisodeFields, EpisodeRef, EpisodeSlice, episode_path
from imf_ray.data.pipeline import TrainDataset, _prefetch_one, _table_rows, _to_table
from imf_ray.data.sampling import SamplePlan
from imf_ray.data.windows import Batch, WindowSpec

SETTLED_S = 3.0


def _slice(frames: int, actions: int) -> EpisodeSlice:
    rng = np.random.default_rng(frames)
    return EpisodeSlice(
        length=400,
        frame_start=3,
        action_start=2,
        images={"top": rng.integers(0, 256, (frames, 5, 7, 3), dtype=np.uint8)},
        qpos=rng.normal(size=(frames, 4)).astype(np.float32),
        action=rng.normal(size=(actions, 6)).astype(np.float32),
    )


@given(frames=st.integers(1, 9), actions=st.integers(1, 9))
def test_rows_come_out_as_they_went_in(frames: int, actions: int) -> None:
    source = _slice(frames, actions)
    ((epoch, number, found),) = _table_rows([_to_table(5, 7, source)])
    assert (epoch, number) == (5, 7)
    assert (found.length, found.frame_start, found.action_start) == (400, 3, 2)
    np.testing.assert_array_equal(found.images["top"], source.images["top"])
    np.testing.assert_array_equal(found.qpos, source.qpos)
    np.testing.assert_array_equal(found.action, source.action)


def test_one_batch_is_made_ahead_and_no_more() -> None:
    made = []
    batches = _prefetch_one(made.append(n) or {"action": np.array([n])} for n in range(6))
    for number, batch in enumerate(batches):
        assert batch["action"] == [number]
        assert number < len(made) <= number + 2
    assert len(made) == 6


def test_what_goes_wrong_ahead_is_told_in_its_turn() -> None:
    def broken() -> Iterator[Batch]:
        yield {"action": np.zeros(1)}
        raise RuntimeError("no more rows")

    batches = _prefetch_one(broken())
    next(batches)
    with pytest.raises(RuntimeError, match="no more rows"):
        next(batches)


@dataclass(frozen=True)
class _Counted(WindowSpec):
    """Leaves a file for each row that is read; it must not be there yet."""

    marks: str = ""

    def read(self, episode: EpisodeRef, start: int, stop: int) -> EpisodeSlice:
        (Path(self.marks) / f"{Path(episode.path).stem}-{start}").touch(exist_ok=False)
        return super().read(episode, start, stop)


@pytest.mark.parametrize("cameras", [("top",), ()], ids=["a camera", "states only"])
def test_readers_wait_for_a_slow_training(
    demonstrations: Path, tmp_path: Path, ray_cluster: None, cameras: tuple[str, ...]
) -> None:
    paths = [episode_path(demonstrations, number) for number in range(3)]
    plan = SamplePlan((400, 400, 400), 8, 1, read_block_steps=4, shuffle_buffer_blocks=2, seed=0)
    rows = 3 * 400 // 4
    stream = TrainDataset(
        plan=plan,
        spec=_Counted(EpisodeFields(cameras), 2, 4, str(tmp_path)),
        episodes=sources_of(paths),
        frame_bytes=48 * 48 * 3 * len(cameras),
        max_steps=plan.steps_per_epoch,
        readers=1,
    )
    batches = stream.batches(stream.rank_dataset(0, 1, 0).iterator(), 0, 1, 0)
    next(batches)
    read, before = len(list(tmp_path.iterdir())), 0
    while read > before:
        time.sleep(SETTLED_S)
        before, read = read, len(list(tmp_path.iterdir()))
    if cameras:
        assert read <= 4 * stream.rows_ahead(0, 1) < rows // 3  # in whole tasks; some are used up
    else:  # they take nothing: all is read ahead
        while len(list(tmp_path.iterdir())) < rows:
            time.sleep(SETTLED_S)
    assert sum(1 for _ in batches) == plan.steps_per_epoch - 1
    assert len(list(tmp_path.iterdir())) == rows


def test_a_row_that_is_gone_leaves_no_pictures_behind() -> None:
    pictures = _slice(4, 4).images["top"]
    source = dataclasses.replace(_slice(4, 4), images={"top": pictures})
    before = sys.getrefcount(pictures)
    table = _to_table(0, 0, source)
    del table
    after = sys.getrefcount(pictures)  # an assertion keeps what it is about
    assert after == before
