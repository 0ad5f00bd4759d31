"""The queue hands out windows and actions, and knows which frames matter."""

import numpy as np
import pytest
import torch

from imf_ray.agents.action_queue import ActionQueue


def observation(step: int, images: bool = True) -> dict[str, object]:
    qpos = np.array([step, -step], dtype=np.float32)
    frame = np.full((2, 2, 3), step, dtype=np.uint8)
    return {"qpos": qpos, "images": {"top": frame}} if images else {"qpos": qpos}


def chunk(step: int) -> torch.Tensor:
    """Five actions; each is its index plus 100 times the step at which it was predicted."""
    return (100 * step + torch.arange(5.0))[:, None]


@pytest.mark.parametrize(("obs_horizon", "num_action_steps"), [(1, 3), (2, 3), (3, 2), (3, 3)])
def test_an_episode_needs_only_the_frames_it_asks_for(
    obs_horizon: int, num_action_steps: int
) -> None:
    queue = ActionQueue(obs_horizon, num_action_steps)
    executed, rendered = [], []
    for step in range(9):
        if queue.needs_images:
            rendered.append(step)
        queue.push(observation(step, images=queue.needs_images))
        if queue.needs_prediction:
            window = queue.window()
            seen = [max(0, step - back) for back in reversed(range(obs_horizon))]
            assert window["qpos"][:, 0].tolist() == seen
            assert window["images"]["top"][:, 0, 0, 0].tolist() == seen
            queue.extend(chunk(step))
        executed.append(queue.pop().item())

    assert executed == [
        100 * (step - step % num_action_steps) + obs_horizon - 1 + step % num_action_steps
        for step in range(9)
    ]
    until_next_chunk = [-step % num_action_steps for step in range(9)]
    assert rendered == [step for step in range(9) if until_next_chunk[step] < obs_horizon]


def test_reset_starts_an_episode() -> None:
    queue = ActionQueue(2, 3)
    queue.push(observation(0))
    queue.extend(chunk(0))
    assert not queue.needs_prediction
    assert not queue.needs_images
    queue.reset()
    assert queue.needs_prediction
    assert queue.needs_images
    queue.push(observation(7))
    assert queue.window()["qpos"][:, 0].tolist() == [7, 7]


def test_arrays_are_copied() -> None:
    queue = ActionQueue(1, 1)
    obs = observation(1)
    queue.push(obs)
    obs["qpos"][:] = 9
    obs["images"]["top"][:] = 9
    window = queue.window()
    assert window["qpos"].tolist() == [[1, -1]]
    assert (window["images"]["top"] == 1).all()


def test_flipped_and_read_only_arrays_are_accepted() -> None:
    queue = ActionQueue(1, 1)
    frame = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)[::-1]
    frame.flags.writeable = False
    queue.push({"qpos": np.zeros(2), "images": {"top": frame}})
    np.testing.assert_array_equal(queue.window()["images"]["top"][0], frame)


def test_batches_stack_behind_the_batch_dimension() -> None:
    queue = ActionQueue(2, 3, time_axis=1)
    queue.push({"qpos": torch.zeros(4, 7), "images": {"top": torch.zeros(4, 2, 2, 3)}})
    assert queue.window()["qpos"].shape == (4, 2, 7)
    queue.extend(torch.zeros(4, 5, 6))
    assert queue.pop().shape == (4, 6)


def test_errors_say_what_is_missing() -> None:
    queue = ActionQueue(2, 3)
    with pytest.raises(ValueError, match="push an observation"):
        queue.window()
    queue.push(observation(0, images=False))
    with pytest.raises(ValueError, match="needs_images"):
        queue.window()
    with pytest.raises(ValueError, match="chunk of 3 actions"):
        queue.extend(torch.zeros(3, 1))
    with pytest.raises(IndexError):
        queue.pop()
