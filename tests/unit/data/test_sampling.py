"""Order of samples and windows, for any lengths, horizons and world sizes."""

from functools import partial
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imf_ray.data.episodes import EpisodeFields, EpisodeRef, EpisodeSlice
from imf_ray.data.hdf5.layouts import IMF_RAY
from imf_ray.data.sampling import SamplePlan, choose_virtual_shards
from imf_ray.data.windows import WindowBatcher, WindowSpec
from imf_ray.errors import UserError

CAMERA, OBJECT = "top", "cube"
MAX_EPOCHS = 64
"""Epochs within which every action must have been predicted."""


@st.composite
def plans(draw: st.DrawFn) -> SamplePlan:
    shards = draw(st.integers(1, 8))
    batch = shards * draw(st.integers(1, 3))
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    lengths.append(batch)  # at least one batch
    return SamplePlan(
        lengths=tuple(lengths),
        batch_size=batch,
        virtual_shards=shards,
        read_block_steps=draw(st.integers(1, 12)),
        shuffle_buffer_blocks=draw(st.integers(1, 4)),
        seed=draw(st.integers(0, 5)),
    )


@given(plans())
@settings(max_examples=60)
def test_an_epoch_uses_each_sample_at_most_once_and_leaves_less_than_a_batch(
    plan: SamplePlan,
) -> None:
    for epoch in range(2):
        first = epoch * plan.steps_per_epoch
        ids = np.concatenate(
            [plan.global_batch(first + step) for step in range(plan.steps_per_epoch)]
        )
        assert len(np.unique(ids)) == len(ids)
        assert ids.min() >= 0 and ids.max() < plan.num_samples
        assert plan.num_samples - len(ids) < plan.batch_size


@given(plans(), st.integers(1, 20), st.integers(1, 20), st.data())
@settings(max_examples=60)
def test_the_parts_of_all_ranks_make_the_global_batch_from_any_step(
    plan: SamplePlan, obs_horizon: int, pred_horizon: int, data: st.DataObject
) -> None:
    world_size = data.draw(st.integers(1, min(plan.virtual_shards, 8)), label="world_size")
    max_steps = data.draw(st.integers(1, 2 * plan.steps_per_epoch + 1), label="max_steps")
    start = data.draw(st.integers(0, max_steps - 1), label="start")
    spec = WindowSpec(EpisodeFields((CAMERA,), (OBJECT,)), obs_horizon, pred_horizon)
    streams = [
        WindowBatcher(plan, spec, rank, world_size).batches(
            _read_segments(plan, spec, rank, world_size, start, max_steps), start, max_steps
        )
        for rank in range(world_size)
    ]
    for step, parts in enumerate(zip(*streams, strict=True), start=start):
        ids = np.concatenate([part["sample_id"] for part in parts])
        np.testing.assert_array_equal(ids, plan.global_batch(step))
        for part in parts:
            for index, sample in enumerate(part["sample_id"]):
                _assert_window(plan, spec, part, index, int(sample))


@given(plans(), st.integers(1, 20), st.integers(0, 20))
@settings(max_examples=60)
def test_every_action_of_every_episode_is_predicted(
    plan: SamplePlan, obs_horizon: int, more: int
) -> None:
    """It takes several epochs: each leaves out other samples, at most half of all."""
    spec = WindowSpec(EpisodeFields(), obs_horizon, obs_horizon + more)
    missing = {(e, step) for e, length in enumerate(plan.lengths) for step in range(length)}
    for batch in range(MAX_EPOCHS * plan.steps_per_epoch):
        samples = plan.global_batch(batch)
        episode = np.searchsorted(plan.sample_offsets, samples, side="right") - 1
        action_steps = spec.action_indices(samples - plan.sample_offsets[episode])
        for number, steps in zip(episode.tolist(), action_steps.tolist(), strict=True):
            missing -= {(number, step) for step in steps}
        if not missing:
            return
    raise AssertionError(f"never predicted: {sorted(missing)}")


def test_the_order_differs_between_epochs_and_seeds() -> None:
    plan = SamplePlan((100,), 10, 2, 5, 2, seed=0)
    other = SamplePlan((100,), 10, 2, 5, 2, seed=1)
    assert not np.array_equal(plan.global_batch(0), plan.global_batch(plan.steps_per_epoch))
    assert not np.array_equal(plan.global_batch(0), other.global_batch(0))


def test_virtual_shards_fit_the_batch_and_the_workers() -> None:
    assert choose_virtual_shards(80, 2, None) == 8
    assert choose_virtual_shards(4, 2, None) == 4
    assert {choose_virtual_shards(48, workers, None) for workers in range(1, 9)} == {8}
    assert choose_virtual_shards(96, 16, None) == 16
    assert choose_virtual_shards(96, 10, None) == 12
    assert choose_virtual_shards(6, 3, None) == 3
    assert choose_virtual_shards(12, 5, None) == 6
    assert choose_virtual_shards(64, 4, 16) == 16
    assert choose_virtual_shards(64, 3, 16) == 16  # ranks own 5, 5 and 6
    assert choose_virtual_shards(40, 6, None) == 8
    with pytest.raises(UserError, match="cannot be divided among 4 virtual shards"):
        choose_virtual_shards(64, 8, 4)
    with pytest.raises(UserError, match="cannot be divided among 4 virtual shards"):
        choose_virtual_shards(4, 5, None)


def _numbers(plan: SamplePlan, episode: int) -> np.ndarray:
    """A different number for every step of every episode."""
    return np.arange(plan.lengths[episode]) + 1000 * episode


def _read_segments(plan, spec, rank, world_size, start, max_steps):
    """The stream of segments, read from episodes whose values number their steps."""
    for epoch, segments in plan.rank_segments(rank, world_size, start, max_steps):
        epoch_plan = plan.epoch(epoch)
        for segment in segments:
            episode = int(epoch_plan.episode[segment])
            values = _numbers(plan, episode)[:, None]
            first, last = int(epoch_plan.start[segment]), int(epoch_plan.stop[segment])
            ref = EpisodeRef("", plan.lengths[episode], IMF_RAY, fingerprint="", content_hash="")
            with mock.patch("imf_ray.data.windows.read_slice", partial(_read_slice, values)):
                source = spec.read(ref, first, last)
            yield epoch, int(segment), source


def _read_slice(
    values: np.ndarray,
    episode: EpisodeRef,
    fields: EpisodeFields,
    frames: tuple[int, int],
    actions: tuple[int, int],
) -> EpisodeSlice:
    """Stands in for the reader: an episode of `values`, read within its bounds."""
    for first, last in (frames, actions):
        assert 0 <= first < last <= episode.length == len(values)
    return EpisodeSlice(
        length=episode.length,
        frame_start=frames[0],
        action_start=actions[0],
        images={CAMERA: values[slice(*frames)]},
        qpos=values[slice(*frames)],
        object_poses={OBJECT: -values[slice(*frames)]},
        action=values[slice(*actions)],
    )


def _assert_window(plan, spec, batch, index, sample) -> None:
    """Compare one window with the definition, one step at a time."""
    episode = int(np.searchsorted(plan.sample_offsets, sample, side="right")) - 1
    step = sample - int(plan.sample_offsets[episode])
    length, values = plan.lengths[episode], _numbers(plan, episode)
    observed = [max(step - spec.obs_horizon + 1 + k, 0) for k in range(spec.obs_horizon)]
    actions = [step - spec.obs_horizon + 1 + k for k in range(spec.pred_horizon)]
    np.testing.assert_array_equal(batch["qpos"][index, :, 0], values[observed])
    np.testing.assert_array_equal(batch["object_poses"][OBJECT][index, :, 0], -values[observed])
    np.testing.assert_array_equal(batch["images"][CAMERA][index, :, 0], values[observed])
    np.testing.assert_array_equal(
        batch["action"][index, :, 0], values[np.clip(actions, 0, length - 1)]
    )
    np.testing.assert_array_equal(
        batch["action_is_pad"][index], [a < 0 or a >= length for a in actions]
    )
