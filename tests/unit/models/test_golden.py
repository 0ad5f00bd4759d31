"""Outputs, losses and gradients of the head agree with the reference implementation."""

import json
from functools import cached_property

import numpy as np
import pytest
import torch
from torch import Tensor

from imf_ray.agents.imf import IMFVLAAgent
from imf_ray.models.imf_transformer import IMFTransformer1D
from tests.helpers import REPO_ROOT

GOLDEN = REPO_ROOT / "tests" / "golden"


class Golden:
    """One golden file, its head, and an agent around that head."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        with np.load(GOLDEN / f"{name}.npz") as file:
            self.config = json.loads(str(file["config"]))
            self.tensors = {k: torch.from_numpy(file[k]) for k in file.files if k != "config"}

    def __getitem__(self, key: str) -> Tensor:
        tensor = self.tensors[key]
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    @cached_property
    def head(self) -> IMFTransformer1D:
        head = IMFTransformer1D(**self.config)
        head.load_state_dict(self.under("state/"), strict=True)
        return head.to(self.dtype)

    def agent(self, **kwargs: object) -> IMFVLAAgent:
        return IMFVLAAgent(
            action_dim=16,
            state_dim=16,
            camera_names=["top"],
            vision_encoder={"stage_widths": (16, 16, 16, 16), "blocks_per_stage": (1, 1, 1, 1)},
            head_factory=lambda **_: self.head,
            **kwargs,
        )

    def loss(self, loss_type: str, padded: bool) -> Tensor:
        is_pad = self["in/action_is_pad"]
        agent = self.agent(loss_type=loss_type, time_sampler="uniform")
        return agent.objective_loss(
            self["in/sample"],
            self["in/cond"],
            self["in/noise"],
            # The uniform sampler sorts the first two numbers, so it returns the golden r <= t.
            torch.stack((self["in/r"], self["in/t"], self["in/t"]), dim=-1),
            is_pad if padded else torch.zeros_like(is_pad),
        )


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=["imf_head_small", "imf_head_single_token"])
def golden(request: pytest.FixtureRequest, dtype: torch.dtype) -> Golden:
    return Golden(request.param, dtype)


def assert_agrees(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def test_state_dict_has_the_reference_keys(golden: Golden) -> None:
    assert list(golden.head.state_dict()) == list(golden.under("state/"))


def test_forward(golden: Golden) -> None:
    output = golden.head(*(golden[f"in/{key}"] for key in ("sample", "r", "t", "cond")))
    assert_agrees(output, golden["out/forward"])


@pytest.mark.parametrize(("steps", "key"), [(1, "out/one_step"), (2, "out/two_step")])
def test_sampling(golden: Golden, steps: int, key: str) -> None:
    agent = golden.agent(inference_steps=steps)
    assert_agrees(agent._sample_actions(golden["in/noise"], golden["in/cond"]), golden[key])


def test_velocities(golden: Golden) -> None:
    agent = golden.agent()
    r, t, cond = golden["in/r"], golden["in/t"], golden["in/cond"]
    fraction = agent._broadcast_batch_time(t, golden["in/sample"])
    z_t = (1 - fraction) * golden["in/sample"] + fraction * golden["in/noise"]
    u, du_dt = agent._compute_u_and_du_dt(z_t, r, t, cond)
    assert_agrees(golden.head(z_t, t, t, cond), golden["out/v"])
    assert_agrees(u, golden["out/u"])
    assert_agrees(du_dt, golden["out/du_dt"], 1e-4)
    assert_agrees(agent._compound_velocity(u, du_dt, r, t), golden["out/compound_velocity"])


@pytest.mark.parametrize("loss_type", ["mse", "pseudo_huber"])
@pytest.mark.parametrize("padded", [False, True])
def test_loss(golden: Golden, loss_type: str, padded: bool) -> None:
    key = f"out/loss_{loss_type}" + "_padded" * padded
    assert_agrees(golden.loss(loss_type, padded), golden[key])


def test_gradients(golden: Golden) -> None:
    golden.loss("mse", padded=True).backward()
    names = golden.under("out/grad/")
    assert names
    for name in names:
        assert_agrees(golden.head.get_parameter(name).grad, golden[f"out/grad/{name}"], 1e-4)


def test_optimizer_groups() -> None:
    expected = json.loads((GOLDEN / "imf_head_small_optim_groups.json").read_text())
    head = Golden("imf_head_small").head
    names = {id(parameter): name for name, parameter in head.named_parameters()}
    decay, no_decay = head.get_optim_groups(weight_decay=0.1)
    assert sorted(names[id(p)] for p in decay["params"]) == expected["decay"]
    assert sorted(names[id(p)] for p in no_decay["params"]) == expected["no_decay"]
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.1, 0.0)
