"""The action queue: windows, executed actions, and the frames that need rendering."""

import numpy as np
import pytest
import torch

from imf_ray.agents.action_queue import ActionQueue


def observation(step: int, images: bool = True) -> dict[str, object]:
    qpos = np.array([step, -step], dtype=np.float32)
    frame = np.full((2, 2, 3), step, dtype=np.uint8)
    return {"qpos": qpos, "images": {"top": frame}} if images else {"qpos": qpos}


def chunk(step: int) -> torch.Tensor:
    """Five actions: 100 times the step of the prediction, plus the index in the chunk."""
    return (100 * step + torch.arange(5.0))[:, None]


@pytest.mark.parametrize(("obs_horizon", "num_action_steps"), [(1, 3), (2, 3), (3, 2), (3, 3)])
def test_an_episode_renders_only_the_frames_that_are_used(
    obs_horizon: int, num_action_steps: int
) -> None:
    queue = ActionQueue(obs_horizon, num_action_steps)
    executed, rendered = [], []
    for step in range(9):
        if queue.needs_images:
            rendered.append(step)
        queue.add_observation(observation(step, images=queue.needs_images))
        if queue.needs_prediction:
            window = queue.observation_window()
            observed = [max(0, step - back) for back in reversed(range(obs_horizon))]
            assert window["qpos"][:, 0].tolist() == observed
            assert window["images"]["top"][:, 0, 0, 0].tolist() == observed
            queue.add_chunk(chunk(step))
        executed.append(queue.pop_action().item())

    assert executed == [
        100 * (step - step % num_action_steps) + obs_horizon - 1 + step % num_action_steps
        for step in range(9)
    ]
    until_next_chunk = [-step % num_action_steps for step in range(9)]
    assert rendered == [step for step in range(9) if until_next_chunk[step] < obs_horizon]


def test_reset_clears_history_and_actions() -> None:
    queue = ActionQueue(2, 3)
    queue.add_observation(observation(0))
    queue.add_chunk(chunk(0))
    assert not queue.needs_prediction
    assert not queue.needs_images
    queue.reset()
    assert queue.needs_prediction
    assert queue.needs_images
    queue.add_observation(observation(7))
    assert queue.observation_window()["qpos"][:, 0].tolist() == [7, 7]


def test_arrays_are_copied() -> None:
    queue = ActionQueue(1, 1)
    obs = observation(1)
    queue.add_observation(obs)
    obs["qpos"][:] = 9
    obs["images"]["top"][:] = 9
    window = queue.observation_window()
    assert window["qpos"].tolist() == [[1, -1]]
    assert (window["images"]["top"] == 1).all()


def test_flipped_and_read_only_arrays_are_accepted() -> None:
    queue = ActionQueue(1, 1)
    frame = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)[::-1]
    frame.flags.writeable = False
    queue.add_observation({"qpos": np.zeros(2), "images": {"top": frame}})
    np.testing.assert_array_equal(queue.observation_window()["images"]["top"][0], frame)


def test_a_batch_of_environments_has_time_as_second_axis() -> None:
    queue = ActionQueue(2, 3, time_axis=1)
    queue.add_observation({"qpos": torch.zeros(4, 7), "images": {"top": torch.zeros(4, 2, 2, 3)}})
    assert queue.observation_window()["qpos"].shape == (4, 2, 7)
    queue.add_chunk(torch.zeros(4, 5, 6))
    assert queue.pop_action().shape == (4, 6)


def test_object_poses_are_stacked_like_images() -> None:
    queue = ActionQueue(2, 1)
    pose = np.arange(7.0)
    for step in range(2):
        queue.add_observation({**observation(step), "object_poses": {"cube": pose + step}})
    pose[:] = 99
    window = queue.observation_window()
    assert window["object_poses"]["cube"][:, 0].tolist() == [0, 1]
    assert window["object_poses"]["cube"].shape == (2, 7)
    queue.reset()
    queue.add_observation(observation(0))
    assert queue.observation_window()["object_poses"] == {}


def test_errors_name_the_missing_input() -> None:
    queue = ActionQueue(2, 3)
    with pytest.raises(ValueError, match="add an observation"):
        queue.observation_window()
    queue.add_observation(observation(0, images=False))
    with pytest.raises(ValueError, match="needs_images"):
        queue.observation_window()
    with pytest.raises(ValueError, match="chunk has 3 actions but 4 are needed"):
        queue.add_chunk(torch.zeros(3, 1))
    with pytest.raises(IndexError):
        queue.pop_action()
