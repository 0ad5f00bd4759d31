"""Rows on their way through Ray Data."""

import dataclasses
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imf_ray.data.episodes import EpisodeSlice
from imf_ray.data.pipeline import _one_ahead, _table_rows, _to_table
from imf_ray.data.windows import Batch


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
    batches = _one_ahead(made.append(n) or {"action": np.array([n])} for n in range(6))
    for number, batch in enumerate(batches):
        assert batch["action"] == [number]
        assert number < len(made) <= number + 2
    assert len(made) == 6


def test_what_goes_wrong_ahead_is_told_in_its_turn() -> None:
    def broken() -> Iterator[Batch]:
        yield {"action": np.zeros(1)}
        raise RuntimeError("no more rows")

    batches = _one_ahead(broken())
    next(batches)
    with pytest.raises(RuntimeError, match="no more rows"):
        next(batches)


def test_a_row_that_is_gone_leaves_no_pictures_behind() -> None:
    pictures = _slice(4, 4).images["top"]
    source = dataclasses.replace(_slice(4, 4), images={"top": pictures})
    before = sys.getrefcount(pictures)
    table = _to_table(0, 0, source)
    del table
    after = sys.getrefcount(pictures)  # an assertion keeps what it is about
    assert after == before
