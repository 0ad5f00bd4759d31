"""What is logged of gradients, and the look inside the policy."""

from pathlib import Path
from typing import Any

import pytest
import torch

from imf_ray.training.diagnostics import DEPTH_WEIGHTS, GradientNorms, run_diagnostics
from tests.helpers.trainers import MakeTrainer


def test_gradient_norms_since_the_last_line() -> None:
    norms = GradientNorms(clip=1.0)
    for value in (0.5, 3.0, 1.5, 1.0):
        norms.add(torch.tensor(value))
    assert norms.metrics() == {"grad_norm": 1.0, "grad_norm_max": 3.0, "grad_clip_frac": 0.5}
    norms.add(torch.tensor(0.25))
    assert norms.metrics() == {"grad_norm": 0.25, "grad_norm_max": 0.25, "grad_clip_frac": 0.0}


@pytest.mark.parametrize("agent", ["resnet_imf_attnres", "resnet_ddpm_attnres"])
def test_a_look_inside_changes_nothing(
    make_trainer: MakeTrainer, batch: dict[str, Any], tmp_path: Path, agent: str
) -> None:
    plain, looked_at = (make_trainer(f"agent={agent}", "agent.head.n_emb=32") for _ in range(2))
    found = run_diagnostics(looked_at.agent, batch, tmp_path)
    assert (tmp_path / DEPTH_WEIGHTS).read_bytes().startswith(b"\x89PNG")
    assert looked_at.agent.training
    assert any(name.startswith("du_dt/") for name in found) == ("imf" in agent)
    assert all(value > 0.0 for value in found.values())
    for trainer in (plain, looked_at):
        torch.manual_seed(0)
        trainer.update(batch)
    for name, value in plain.agent.state_dict().items():
        assert torch.equal(value, looked_at.agent.state_dict()[name]), name
