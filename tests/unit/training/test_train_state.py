"""One update: gradient accumulation, compilation, and image encoders in bfloat16."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from imf_ray.agents import initial_weights
from imf_ray.errors import UserError
from imf_ray.models.vision import ResNetTrunk
from imf_ray.training.train_state import TrainState, split_microbatches
from tests.helpers.trainers import (
    COMPILED_KINDS,
    MakeTrainer,
    check_compiled_updates,
    config_of,
    gradients,
)

Batch = dict[str, Any]


def test_microbatches_are_parts_of_the_batch(batch: Batch) -> None:
    microbatches = split_microbatches(batch, 4)
    assert all(part["valid_count"] is batch["valid_count"] for part in microbatches)
    top = torch.cat([part["images"]["top"] for part in microbatches])
    assert torch.equal(top, batch["images"]["top"])
    assert torch.cat([part["sample_id"] for part in microbatches]).tolist() == list(range(8))
    assert [len(part["action"]) for part in microbatches] == [2, 2, 2, 2]


@pytest.mark.parametrize(("noise_samples", "poses"), [(1, False), (2, False), (2, True)])
def test_accumulated_gradients_equal_those_of_the_batch(
    make_trainer: MakeTrainer, batch: Batch, noise_samples: int, poses: bool
) -> None:
    if poses:
        batch["object_poses"] = {"cube": torch.randn(8, 2, 7)}
    if noise_samples > 1:
        batch["noise"] = torch.randn(8, noise_samples, 16, 16)
        batch["time_uniforms"] = torch.rand(8, noise_samples, 3)
    results = []
    for steps in (1, 4):
        trainer = make_trainer(
            f"train.gradient_accumulation_steps={steps}",
            f"agent.noise_samples_per_obs={noise_samples}",
            *(["agent.aux_pose_objects=[cube]"] if poses else []),
        )
        loss, norm = trainer.update(batch)
        results.append((loss, norm, gradients(trainer)))
    (loss, norm, whole), (loss_parts, norm_parts, accumulated) = results
    torch.testing.assert_close(loss_parts, loss, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(norm_parts, norm, rtol=1e-5, atol=0.0)
    assert (accumulated - whole).norm() <= 1e-5 * whole.norm()


def test_microbatches_must_divide_the_share_of_a_worker() -> None:
    config_of("train.batch_size=8", "train.gradient_accumulation_steps=4", "cluster.num_workers=2")
    with pytest.raises(
        UserError, match=r"train.gradient_accumulation_steps=3 .* train.batch_size=8"
    ):
        config_of("train.batch_size=8", "train.gradient_accumulation_steps=3")
    with pytest.raises(UserError, match="a multiple of 16"):
        config_of(
            "train.batch_size=8", "train.gradient_accumulation_steps=8", "cluster.num_workers=2"
        )


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("kind", COMPILED_KINDS.values(), ids=COMPILED_KINDS)
def test_compiled_updates_equal_eager_ones(
    make_trainer: MakeTrainer,
    batch: Batch,
    kind: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The graphs of a compiled update; tests/slow/test_inductor.py also makes machine code."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    check_compiled_updates(make_trainer, batch, kind)


def test_compilation_is_refused_if_it_cannot_work(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"Set agent.head.p_drop_attn=0 \(it is 0.1\)"):
        config_of("train.compile=true", "agent.head.p_drop_attn=0.1")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"no-such-compiler\. Install it"):
        make_trainer("train.compile=true")


def test_bfloat16_encoders_do_not_affect_the_objective(
    make_trainer: MakeTrainer, batch: Batch
) -> None:
    trainer = make_trainer()
    agent = trainer.agent

    def compute() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The condition, the loss and the gradients of both parts."""
        agent.zero_grad()
        loss = agent(batch)
        loss.backward()
        by_part = {part: gradients(trainer, part) for part in ("vision_encoder", "head")}
        return agent._build_cond(batch).detach(), loss.detach(), by_part

    cond, loss, expected = compute()
    agent.bf16_encoders = True
    cond_half, loss_half, actual = compute()
    epsilon = torch.finfo(torch.bfloat16).eps
    assert cond_half.dtype == torch.float32 and not torch.equal(cond_half, cond)
    assert (cond_half - cond).abs().max() <= 4 * epsilon
    torch.testing.assert_close(loss_half, loss, rtol=epsilon, atol=0.0)
    for part, bound in (
        ("head", epsilon),
        ("vision_encoder", 32 * epsilon),
    ):  # the encoder has many layers
        assert (actual[part] - expected[part]).norm() <= bound * expected[part].norm(), part
    assert not torch.equal(actual["vision_encoder"], expected["vision_encoder"])

    # From the same condition, u and du/dt are bitwise equal: only the encoders are affected.
    r, t = batch["time_uniforms"][:, :2].sort(dim=-1).values.unbind(-1)
    derivatives = []
    for agent.bf16_encoders in (False, True):
        derivatives.append(agent._compute_u_and_du_dt(batch["noise"], r, t, cond))
    assert all(torch.equal(a, b) for a, b in zip(*derivatives, strict=True))

    agent.eval()  # evaluation stays in float32
    with torch.no_grad():
        half = agent._build_cond(batch)
        agent.bf16_encoders = False
        assert torch.equal(half, agent._build_cond(batch))


def test_emulated_bfloat16_is_refused(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with pytest.raises(
        UserError, match=r"train.encoder_precision=bf16, but the cpu .* Set train.encoder_precision"
    ):
        make_trainer("train.encoder_precision=bf16")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert make_trainer("train.encoder_precision=bf16").agent.bf16_encoders


def test_pretrained_weights_are_in_every_encoder_and_in_the_averages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretrained = "agent.vision_backbone.pretrained_backbone_weights=IMAGENET1K_V1"
    sizes = ("stage_widths=[64,128,256,512]", "blocks_per_stage=[2,2,2,2]")
    config = config_of(pretrained, *(f"agent.vision_backbone.{size}" for size in sizes))
    weights = ResNetTrunk(pretrained_weights="IMAGENET1K_V1").state_dict()
    monkeypatch.setattr(initial_weights, "read_backbone_weights", lambda name: weights)
    initial = initial_weights.read_initial_weights(config)
    assert initial is not None
    stats = {"qpos": _stats(16), "action": _stats(16), "object_poses": {}}
    state = TrainState(config, stats, torch.device("cpu"), initial.tensors)
    assert state.agent.vision_encoder is not None and state.ema is not None
    for camera, encoder in state.agent.vision_encoder.encoders.items():
        torch.testing.assert_close(encoder.trunk.state_dict(), weights, rtol=0, atol=0)
        name = f"vision_encoder.encoders.{camera}.trunk.conv1.weight"
        assert torch.equal(state.ema.state[name], weights["conv1.weight"])


def _stats(dim: int) -> dict[str, list[float]]:
    return {"min": [-2.0] * dim, "max": [2.0] * dim, "mean": [0.0] * dim, "std": [1.0] * dim}
