"""The auxiliary lesson: what it adds to the loss, what it teaches, and that acting ignores it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from imf_ray.agents.imf import IMFVLAAgent
from imf_ray.agents.pose_head import PoseHead

Make = Callable[..., IMFVLAAgent]
Batch = dict[str, Any]


def with_poses(batch: Batch) -> Batch:
    """The batch with one object's poses behind the state."""
    poses = torch.randn(4, 2, 7, generator=torch.Generator().manual_seed(2))
    poses[..., 3:] /= poses[..., 3:].norm(dim=-1, keepdim=True)
    return {**batch, "qpos": torch.cat((batch["qpos"], poses), dim=-1)}


def test_the_error_counts_samples_by_their_valid_actions() -> None:
    readout = PoseHead(5, 1, "identity", None)
    torch.nn.init.zeros_(readout.linear.weight)
    torch.nn.init.zeros_(readout.linear.bias)
    poses = torch.tensor([1.0, 2.0, -3.0, 1.0, 0.0, 0.0, 0.0]).expand(2, 2, 7).clone()
    poses[1, :, :3] *= 2
    is_pad = torch.tensor([[False, False, False, True], [False, True, True, True]])
    # Mean absolute errors of the samples: (1 + 2 + 3 + 1) / 7 and (2 + 4 + 6 + 1) / 7.
    expected = (3 * 7 / 7 + 1 * 13 / 7) / 4
    error = readout(torch.randn(2, 2, 5), poses, is_pad, None)
    torch.testing.assert_close(error, torch.tensor(expected))
    # q and -q are the same rotation.
    poses[..., 3:] *= -1
    torch.testing.assert_close(readout(torch.randn(2, 2, 5), poses, is_pad, None), error)


@pytest.mark.parametrize("conditioning", ["single_token", "multi_token"])
@pytest.mark.parametrize("draws", [1, 3])
def test_it_is_added_to_the_objective_with_its_weight(
    make_agent: Make, batch: Batch, conditioning: str, draws: int
) -> None:
    if draws > 1:
        batch = batch | {"noise": torch.randn(4, 3, 16, 16), "time_uniforms": torch.rand(4, 3, 3)}
    options = {"conditioning": conditioning, "noise_samples_per_obs": draws}
    objective = make_agent(**options)(batch)
    losses = [
        make_agent(num_target_poses=1, aux_pose_loss_weight=weight, **options)(with_poses(batch))
        for weight in (0.0, 1.0, 3.0)
    ]
    torch.testing.assert_close(losses[0], objective)
    assert losses[1] > objective
    torch.testing.assert_close(losses[2] - objective, 3 * (losses[1] - objective))


def test_it_teaches_the_encoders(make_agent: Make, batch: Batch) -> None:
    agent = make_agent(num_target_poses=1)
    weight = agent.vision_encoder.encoders["top"].trunk.conv1.weight
    gradients = []
    for agent.aux_pose_loss_weight in (0.0, 1.0):
        agent.zero_grad()
        agent(with_poses(batch)).backward()
        gradients.append(weight.grad.clone())
    assert not torch.equal(*gradients)


def test_acting_does_not_know_the_poses(make_agent: Make, batch: Batch) -> None:
    agent = make_agent(num_target_poses=1)
    torch.nn.init.normal_(agent.head.head.weight)
    told = agent.predict_action(with_poses(batch), batch["noise"])
    assert torch.equal(agent.predict_action(batch, batch["noise"]), told)


def test_statistics_hold_state_and_poses(make_agent: Make) -> None:
    data = np.random.default_rng(0).normal(3, 5, (50, 23)).astype(np.float32)
    numbers = {name: getattr(data, name)(axis=0) for name in ("min", "max", "mean", "std")}
    actions = {name: values[:16] for name, values in numbers.items()}
    agent = make_agent(num_target_poses=1, stats={"qpos": numbers, "action": actions})
    given = agent.get_normalization_stats()["qpos"]
    np.testing.assert_array_equal(given["mean"], numbers["mean"])
    with pytest.raises(ValueError, match=r"give \(7,\) finite numbers"):
        make_agent(num_target_poses=1, stats={"qpos": actions, "action": actions})


def test_it_needs_cameras(make_stub_agent: Make) -> None:
    with pytest.raises(ValueError, match="camera_names is empty"):
        make_stub_agent(camera_names=(), num_target_poses=1)
