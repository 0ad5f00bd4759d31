"""The auxiliary pose loss: its value, its gradients, and that inference ignores it."""

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
    """The batch with the poses of one object."""
    poses = torch.randn(4, 2, 7, generator=torch.Generator().manual_seed(2))
    poses[..., 3:] /= poses[..., 3:].norm(dim=-1, keepdim=True)
    return {**batch, "object_poses": {"cube": poses}}


def test_the_loss_weights_samples_by_their_valid_actions() -> None:
    pose_head = PoseHead(5, 1, "identity", None)
    torch.nn.init.zeros_(pose_head.linear.weight)
    torch.nn.init.zeros_(pose_head.linear.bias)
    poses = torch.tensor([1.0, 2.0, -3.0, 1.0, 0.0, 0.0, 0.0]).expand(2, 2, 7).clone()
    poses[1, :, :3] *= 2
    is_pad = torch.tensor([[False, False, False, True], [False, True, True, True]])
    # Mean absolute errors of the two samples: (1 + 2 + 3 + 1) / 7 and (2 + 4 + 6 + 1) / 7.
    expected = (3 * 7 / 7 + 1 * 13 / 7) / 4
    error = pose_head(torch.randn(2, 2, 5), poses, is_pad, None)
    torch.testing.assert_close(error, torch.tensor(expected))
    # q and -q are the same rotation.
    poses[..., 3:] *= -1
    torch.testing.assert_close(pose_head(torch.randn(2, 2, 5), poses, is_pad, None), error)


@pytest.mark.parametrize("conditioning", ["single_token", "multi_token"])
@pytest.mark.parametrize("noise_samples", [1, 3])
def test_the_pose_loss_is_added_with_its_weight(
    make_agent: Make, batch: Batch, conditioning: str, noise_samples: int
) -> None:
    if noise_samples > 1:
        batch = batch | {"noise": torch.randn(4, 3, 16, 16), "time_uniforms": torch.rand(4, 3, 3)}
    options = {"conditioning": conditioning, "noise_samples_per_obs": noise_samples}
    objective = make_agent(**options)(batch)
    losses = [
        make_agent(aux_pose_objects=["cube"], aux_pose_loss_weight=weight, **options)(
            with_poses(batch)
        )
        for weight in (0.0, 1.0, 3.0)
    ]
    torch.testing.assert_close(losses[0], objective)
    assert losses[1] > objective
    torch.testing.assert_close(losses[2] - objective, 3 * (losses[1] - objective))


def test_the_pose_loss_trains_the_encoders(make_agent: Make, batch: Batch) -> None:
    agent = make_agent(aux_pose_objects=["cube"])
    weight = agent.vision_encoder.encoders["top"].trunk.conv1.weight
    gradients = []
    for agent.aux_pose_loss_weight in (0.0, 1.0):
        agent.zero_grad()
        agent(with_poses(batch)).backward()
        gradients.append(weight.grad.clone())
    assert not torch.equal(*gradients)


def test_inference_ignores_the_poses(make_agent: Make, batch: Batch) -> None:
    agent = make_agent(aux_pose_objects=["cube"])
    torch.nn.init.normal_(agent.head.head.weight)
    with_pose = agent.predict_action(with_poses(batch), batch["noise"])
    assert torch.equal(agent.predict_action(batch, batch["noise"]), with_pose)


def test_statistics_contain_state_and_poses(make_agent: Make) -> None:
    rng = np.random.default_rng(0)

    def stats(dim: int) -> dict[str, np.ndarray]:
        data = rng.normal(3, 5, (50, dim)).astype(np.float32)
        return {name: getattr(data, name)(axis=0) for name in ("min", "max", "mean", "std")}

    poses = {name: stats(7) for name in ("cube", "peg")}
    given = {"qpos": stats(16), "action": stats(16), "object_poses": poses}
    objects = {"privileged_pose_objects": ["peg"], "aux_pose_objects": ["cube"]}
    agent = make_agent(**objects, stats=given)
    in_use = agent.get_normalization_stats()
    for group in ("qpos", "action"):
        np.testing.assert_array_equal(in_use[group]["mean"], given[group]["mean"])
    assert set(in_use["object_poses"]) == {"cube", "peg"}
    for name in poses:
        np.testing.assert_array_equal(in_use["object_poses"][name]["std"], poses[name]["std"])
    np.testing.assert_array_equal(agent.qpos_normalizer.min[16:], poses["peg"]["min"])
    with pytest.raises(ValueError, match=r"object_poses of cube are missing \(given: peg\)"):
        make_agent(**objects, stats=given | {"object_poses": {"peg": poses["peg"]}})


def test_the_pose_loss_needs_cameras(make_stub_agent: Make) -> None:
    with pytest.raises(ValueError, match="camera_names is empty"):
        make_stub_agent(camera_names=(), aux_pose_objects=["cube"])
