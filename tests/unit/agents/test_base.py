"""What all agents share: conditioning, queues, optimizer groups and the state dict."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imf_ray.agents.imf import IMFVLAAgent

Make = Callable[..., IMFVLAAgent]
Batch = dict[str, Any]


def observation_at(batch: Batch, index: int = 0) -> Batch:
    return {
        "images": {name: images[:, index] for name, images in batch["images"].items()},
        "qpos": batch["qpos"][:, index],
    }


def stats(dim: int) -> dict[str, np.ndarray]:
    data = np.random.default_rng(0).normal(3, 5, (50, dim)).astype(np.float32)
    return {name: getattr(data, name)(axis=0) for name in ("min", "max", "mean", "std")}


def test_single_token_condition(make_stub_agent: Make, batch: Batch) -> None:
    agent = make_stub_agent()
    assert agent.head.sizes["cond_dim"] == 3 * 64 + 16 == 208
    assert agent.head.sizes["n_obs_steps"] == agent.condition_sequence_length == 2
    assert agent.condition_tokens_per_step == 1
    cond = agent._build_cond(batch)
    assert cond.shape == (4, 2, 208)
    torch.testing.assert_close(cond[..., -16:], batch["qpos"])


def test_multi_token_condition(make_agent: Make, batch: Batch) -> None:
    agent = make_agent(conditioning="multi_token")
    assert agent.condition_tokens_per_step == 3
    assert agent.condition_sequence_length == 6
    assert agent.head.cond_obs_emb.in_features == 16
    cond = agent._build_cond(batch)
    assert cond.shape == (4, 6, 16)
    # Token 4 is the second camera of the second step.
    features = agent.vision_encoder.encode_windows(batch["images"], agent.image_normalizer)[:, 1, 1]
    token = agent.projector(torch.cat((features, batch["qpos"][:, 1]), dim=-1))
    torch.testing.assert_close(cond[:, 4], token)


def test_a_policy_on_state_alone(make_stub_agent: Make, batch: Batch) -> None:
    agent = make_stub_agent(camera_names=(), privileged_pose_objects=["cube"])
    assert agent.head.sizes["cond_dim"] == 16 + 7
    pose = torch.tensor([0.1, 0.2, 0.3, -1.0, 0.0, 0.0, 0.0])
    poses = {"cube": pose.expand(4, 2, 7), "ignored": torch.zeros(4, 2, 7)}
    cond = agent._build_cond({"qpos": batch["qpos"], "object_poses": poses})
    torch.testing.assert_close(cond[..., :16], batch["qpos"])
    torch.testing.assert_close(cond[..., 16:19], pose[:3].expand(4, 2, 3))
    # q and -q are the same rotation.
    upright = torch.tensor([1.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(cond[..., -4:], upright.expand(4, 2, 4))
    step = {"qpos": batch["qpos"][:, 0], "object_poses": {"cube": pose.expand(4, 7)}}
    assert agent.select_action(step).shape == (4, 16)
    with pytest.raises(ValueError, match="camera_names is empty"):
        make_stub_agent(camera_names=(), conditioning="multi_token")


def test_poses_follow_qpos_in_the_order_of_the_objects(make_agent: Make, batch: Batch) -> None:
    agent = make_agent(camera_names=(), privileged_pose_objects=["peg", "hole"])
    poses = {name: torch.randn(4, 2, 7) for name in ("hole", "peg")}
    cond = agent._build_cond({"qpos": batch["qpos"], "object_poses": poses})
    torch.testing.assert_close(cond[..., 16:19], poses["peg"][..., :3])
    torch.testing.assert_close(cond[..., 23:26], poses["hole"][..., :3])


def test_wrong_states_are_named(make_agent: Make, batch: Batch) -> None:
    agent = make_agent(camera_names=(), privileged_pose_objects=["cube"])
    with pytest.raises(ValueError, match=r"object_poses of cube are missing \(given: none\)"):
        agent._build_cond({"qpos": batch["qpos"]})
    with pytest.raises(ValueError, match="qpos has 23 numbers, but the policy takes state_dim=16"):
        agent._build_cond({"qpos": torch.zeros(4, 2, 23)})


def test_crops_are_random_in_training_only(make_agent: Make, batch: Batch) -> None:
    no_stride = {"stage_widths": (8, 8, 8, 8), "stage_strides": (1, 1, 1, 1)}
    agent = make_agent(vision_encoder={**no_stride, "crop_size": 24})
    assert torch.equal(agent.eval()._build_cond(batch), agent._build_cond(batch))
    assert not torch.equal(agent.train()._build_cond(batch), agent._build_cond(batch))
    offsets = {"crop_offsets": torch.rand(4, 3, 2)}
    assert torch.equal(agent._build_cond(batch | offsets), agent._build_cond(batch | offsets))


def test_forward_is_the_loss(make_agent: Make, batch: Batch) -> None:
    agent = make_agent()
    assert torch.equal(agent(batch), agent.compute_loss(batch))
    assert agent(batch).shape == ()


def test_select_action_calls_the_network_once_per_chunk(
    make_stub_agent: Make, batch: Batch
) -> None:
    agent = make_stub_agent(num_action_steps=8)
    actions = []
    for step in range(17):
        obs = observation_at(batch)
        if not agent.needs_images:
            del obs["images"]
        actions.append(agent.select_action(obs, noise=batch["noise"]))
        assert len(agent.head.calls) == 1 + step // 8
    repeated = {
        "images": {k: v[:, :1].expand(-1, 2, -1, -1, -1) for k, v in batch["images"].items()},
        "qpos": batch["qpos"][:, :1].expand(-1, 2, -1),
    }
    chunk = agent.predict_action(repeated, noise=batch["noise"])
    torch.testing.assert_close(torch.stack(actions[:8], dim=1), chunk[:, 1:9])
    agent.reset()
    agent.select_action(observation_at(batch, 1))
    assert torch.equal(agent.head.calls[-1]["cond"][:, 0], agent.head.calls[-1]["cond"][:, 1])


def test_actions_are_returned_in_real_units(make_stub_agent: Make, batch: Batch) -> None:
    agent = make_stub_agent(stats={"qpos": stats(16), "action": stats(16)})
    noise = torch.zeros(4, 16, 16)
    agent.head.forward = lambda sample, r, t, cond: torch.ones_like(sample)
    lowest = torch.from_numpy(stats(16)["min"]).expand(4, 16, 16)
    torch.testing.assert_close(agent.predict_action(batch, noise=noise), lowest)
    in_use = agent.get_normalization_stats()
    np.testing.assert_array_equal(in_use["action"]["std"], stats(16)["std"])


def test_end_effector_actions_have_unit_quaternions(make_agent: Make, batch: Batch) -> None:
    actions = make_agent(action_space="ee").predict_action(batch)
    for quaternion in (actions[..., 3:7], actions[..., 11:15]):
        torch.testing.assert_close(quaternion.norm(dim=-1), torch.ones(4, 16))


@pytest.mark.parametrize("conditioning", ["single_token", "multi_token"])
def test_a_loaded_state_dict_predicts_the_same_bits(
    make_agent: Make, batch: Batch, conditioning: str
) -> None:
    trained = make_agent(conditioning=conditioning, stats={"qpos": stats(16), "action": stats(16)})
    fresh = make_agent(conditioning=conditioning)
    for parameter in trained.parameters():
        torch.nn.init.normal_(parameter, std=0.1)

    def predict(agent: IMFVLAAgent) -> Tensor:
        return agent.predict_action(batch, generator=torch.Generator().manual_seed(7))

    assert not torch.equal(predict(fresh), predict(trained))
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(predict(fresh), predict(trained))


def test_optimizer_groups_hold_every_trainable_parameter_once(make_agent: Make) -> None:
    agent = make_agent(conditioning="multi_token", vision_encoder={"freeze_backbone": True})
    groups = agent.get_optim_groups(weight_decay=0.1)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) >= {id(p) for p in agent.parameters() if p.requires_grad}
    decaying = {id(p) for g in groups if g["weight_decay"] == 0.1 for p in g["params"]}
    assert id(agent.projector.weight) in decaying
    assert id(agent.projector.bias) not in decaying
    assert id(agent.head.input_emb.weight) in decaying


def test_a_head_without_groups_is_split_like_the_rest(make_stub_agent: Make) -> None:
    agent = make_stub_agent()
    _, no_decay = agent.get_optim_groups(weight_decay=0.1)
    assert any(p is agent.head.scale for p in no_decay["params"])


def test_missing_camera_is_named(make_agent: Make, batch: Batch) -> None:
    agent = make_agent()
    del batch["images"]["top"]
    with pytest.raises(ValueError, match="camera top are missing"):
        agent(batch)
    with pytest.raises(ValueError, match="camera top is missing"):
        agent.select_action(observation_at(batch))


def spoil(inputs: Batch, case: str) -> Batch:
    """Return the inputs of an agent with one mistake."""
    top = inputs["images"]["top"]
    images = {
        "channel-first": top.movedim(-1, -3),
        "RGBA": torch.cat((top, top[..., :1]), dim=-1),
        "float": top / 255,
        "unbatched": top[0],
        "another batch size": top[:2],
        "larger": torch.zeros(*top.shape[:-3], 48, 64, 3, dtype=torch.uint8),
    }
    if case in images:
        return inputs | {"images": inputs["images"] | {"top": images[case]}}
    if case == "missing camera":
        return inputs | {"images": {"front": top, "r_vis": top}}
    qpos = {"qpos unbatched": inputs["qpos"][0], "14 numbers": inputs["qpos"][..., :14]}
    if case in qpos:
        return inputs | {"qpos": qpos[case]}
    key = {"no qpos": "qpos", "no images": "images"}[case]
    return {name: value for name, value in inputs.items() if name != key}


WRONG_INPUTS = {
    "channel-first": ["top", "color axis"],
    "RGBA": ["top", "alpha"],
    "float": ["top", "float32", "uint8"],
    "unbatched": ["top", "batch axis"],
    "another batch size": ["top", "(2,", "(4,"],
    "larger": ["top", "48 x 64", "40 x 40"],
    "missing camera": ["top", "given: front, r_vis"],
    "qpos unbatched": ["qpos", "16)"],
    "14 numbers": ["qpos", "14", "16"],
    "no qpos": ["qpos", "given: images"],
    "no images": ["r_vis", "given: none"],
}


@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_wrong_inputs_are_named(make_agent: Make, batch: Batch, case: str) -> None:
    agent = make_agent()
    agent.image_size = 40
    windows = {key: batch[key] for key in ("images", "qpos")}
    for call, inputs in (
        (agent.select_action, observation_at(batch)),
        (agent.predict_action, windows),
        (lambda wrong: agent.compute_loss(batch | wrong if len(wrong) == 2 else wrong), windows),
    ):
        with pytest.raises(ValueError) as error:
            call(spoil(inputs, case))
        assert all(text in str(error.value) for text in WRONG_INPUTS[case]), error.value
        assert not agent._queue._history  # the observation was not used


def test_windows_of_another_length_or_device_are_named(make_agent: Make, batch: Batch) -> None:
    agent = make_agent()
    for wrong, named in (
        ({"qpos": batch["qpos"][:, :1]}, r"qpos has shape \(4, 1, 16\).*\(B, 2, 16\)"),
        ({"qpos": batch["qpos"].to("meta")}, "qpos: on meta, but the policy is on cpu"),
        ({"qpos": batch["qpos"].numpy()}, "qpos: ndarray given, but a tensor is needed"),
        ({"images": batch["images"]["top"]}, "in a mapping, not Tensor"),
        ({"action": batch["action"][..., :14]}, "action has 14 numbers, but the policy takes 16"),
        ({"action_is_pad": batch["action_is_pad"][:, :8]}, r"action_is_pad .*\(4, 16\)"),
    ):
        with pytest.raises(ValueError, match=named):
            agent.compute_loss(batch | wrong)


def test_the_number_of_robots_stays_during_an_episode(make_agent: Make, batch: Batch) -> None:
    agent = make_agent()
    agent.select_action(observation_at(batch))
    fewer = {"qpos": batch["qpos"][:2, 0]}
    with pytest.raises(ValueError, match=r"\(2, 16\).*\(4, 16\).*reset"):
        agent.select_action(fewer)
    agent.reset()
    images = {name: image[:2, 0] for name, image in batch["images"].items()}
    assert agent.select_action(fewer | {"images": images}).shape == (2, 16)


def test_the_checks_run_on_the_meta_device(make_agent: Make, batch: Batch) -> None:
    """Nothing reads values, so nothing waits for a GPU."""
    with torch.device("meta"):
        agent = make_agent().eval()
        inputs = {
            "images": {name: image.to("meta") for name, image in batch["images"].items()},
            "qpos": batch["qpos"].to("meta"),
        }
        assert agent.predict_action(inputs).shape == (4, 16, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_action_steps": 16}, "num_action_steps <= 15 or pred_horizon >= 17"),
        ({"obs_horizon": 0}, "obs_horizon=0"),
        ({"inference_steps": 0}, "inference_steps=0"),
        ({"conditioning": "film"}, "choose one of single_token, multi_token"),
        ({"conditioning": "multi_token", "head": {}}, "set head.n_emb"),
        ({"action_space": "cartesian"}, "choose one of joint, ee"),
        ({"action_space": "ee", "action_dim": 14}, "action_dim=14"),
    ],
)
def test_impossible_options_are_refused(
    make_agent: Make, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_agent(**options)
