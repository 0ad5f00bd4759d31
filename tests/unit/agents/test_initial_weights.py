"""Agents that start with the weights of another policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from imf_ray.agents.initial_weights import policy_digest, read_initial_weights
from imf_ray.agents.pretrained import make_agent, save_agent
from imf_ray.checkpoint_dir import MANIFEST_FILE
from imf_ray.config import load_config
from imf_ray.errors import UserError
from imf_ray.schema import Config

SINGLE, MULTI = "resnet_imf_attnres", "resnet_imf_attnres_multitoken"
TINY = (
    "data.dataset_dir=data",
    "agent.vision_backbone.stage_widths=[8,8,16,16]",
    "agent.vision_backbone.blocks_per_stage=[1,1,1,1]",
    "agent.vision_backbone.num_keypoints=4",
    "agent.head.n_emb=16",
    "agent.head.n_layer=1",
)


def config_of(agent: str, *overrides: str) -> Config:
    return load_config([f"agent={agent}", *TINY, *overrides])


@pytest.fixture
def make_policy(tmp_path: Path) -> Callable[..., Path]:
    """Write policies with random weights, whose EMA weights are one above the others."""

    def make(agent: str, *overrides: str) -> Path:
        folder = tmp_path / f"policy_{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        config = config_of(agent, *overrides)
        policy = make_agent(config.agent, config.task.action_space)
        ema = {name: tensor + 1.0 for name, tensor in policy.state_dict().items()}
        save_agent(folder, policy, config, ema)
        (folder / MANIFEST_FILE).write_text("{}")
        return folder

    return make


def test_all_weights_but_the_statistics_come_over(make_policy: Callable[..., Path]) -> None:
    folder = make_policy(SINGLE)
    config = config_of(SINGLE, f"train.init_from={folder}")
    initial = read_initial_weights(config)
    assert initial is not None
    assert (initial.untrained, initial.unused) == ((), ())
    torch.manual_seed(1)
    started = make_agent(config.agent, "joint", weights=initial.tensors).state_dict()
    torch.manual_seed(1)
    untrained = make_agent(config.agent, "joint").state_dict()
    for name, tensor in started.items():
        if "normalizer" in name:
            assert torch.equal(tensor, untrained[name])
        else:
            assert torch.equal(tensor, initial.tensors[name])
            assert tensor.numel() == 0 or not torch.equal(tensor, untrained[name])


def test_a_multi_token_agent_takes_the_encoders_of_a_single_token_policy(
    make_policy: Callable[..., Path],
) -> None:
    folder = make_policy(SINGLE, "agent.head.n_emb=32")
    options = (f"train.init_from={folder}", "train.init_parts=encoders")
    initial = read_initial_weights(config_of(MULTI, *options))
    assert initial is not None
    assert all(name.startswith("vision_encoder.") for name in initial.tensors)
    assert {name.split(".")[0] for name in initial.untrained} == {"projector", "head"}
    assert {name.split(".")[0] for name in initial.unused} == {"head"}
    line = initial.describe()
    assert str(folder) in line and "projector" in line and "head" in line


def test_a_policy_with_more_cameras_gives_those_that_the_agent_has(
    make_policy: Callable[..., Path],
) -> None:
    options = (f"train.init_from={make_policy(MULTI)}", "train.init_parts=encoders")
    initial = read_initial_weights(config_of(MULTI, "data.camera_names=[top]", *options))
    assert initial is not None
    assert {name.split(".")[2] for name in initial.tensors} == {"top"}
    assert {name.split(".")[2] for name in initial.unused if "encoders" in name} == {
        "r_vis",
        "front",
    }


@pytest.mark.parametrize(
    ("override", "module"),
    [
        ("agent.head.n_emb=32", "head"),
        ("agent.vision_backbone.stage_widths=[8,8,16,32]", "vision_encoder"),
        ("agent.action_dim=14", "head"),
    ],
)
def test_a_shape_that_does_not_fit_is_named(
    make_policy: Callable[..., Path], override: str, module: str
) -> None:
    folder = make_policy(SINGLE)
    with pytest.raises(UserError, match=rf"train.init_from={folder}.*{module}\.\S+ has the shape"):
        read_initial_weights(config_of(SINGLE, override, f"train.init_from={folder}"))


def test_a_policy_without_any_of_the_cameras_is_refused(make_policy: Callable[..., Path]) -> None:
    folder = make_policy(MULTI, "data.camera_names=[top]")
    options = (f"train.init_from={folder}", "train.init_parts=encoders")
    with pytest.raises(UserError, match=r"cameras are top; agent.camera_names are front"):
        read_initial_weights(config_of(MULTI, "data.camera_names=[front]", *options))


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path / "missing")):
        read_initial_weights(config_of(SINGLE, f"train.init_from={tmp_path / 'missing'}"))


def test_the_digest_is_that_of_the_content(make_policy: Callable[..., Path]) -> None:
    first, second = make_policy(SINGLE), make_policy(SINGLE)
    assert policy_digest(str(first)) != policy_digest(str(second))
    moved = first.rename(first.with_name("moved"))
    copy_config = config_of(SINGLE, f"train.init_from={moved}")
    initial = read_initial_weights(copy_config)
    assert initial is not None and initial.digest == policy_digest(str(moved))


def test_without_a_source_nothing_is_read() -> None:
    assert read_initial_weights(config_of(SINGLE)) is None
