"""Gradient norms, and measurements inside the policy."""

from pathlib import Path
from typing import Any

import pytest
import torch

from imf_ray.training.diagnostics import GradientNorms, run_diagnostics
from imf_ray.training.run_dir import DEPTH_WEIGHTS_FILE, RunDir
from tests.helpers.trainers import MakeTrainer


def test_gradient_norms_since_the_last_log_line() -> None:
    norms = GradientNorms(clip=1.0)
    for value in (0.5, 3.0, 1.5, 1.0):
        norms.add(torch.tensor(value))
    assert norms.metrics() == {"grad_norm": 1.0, "grad_norm_max": 3.0, "grad_clip_frac": 0.5}
    norms.add(torch.tensor(0.25))
    assert norms.metrics() == {"grad_norm": 0.25, "grad_norm_max": 0.25, "grad_clip_frac": 0.0}


@pytest.mark.parametrize("agent", ["resnet_imf_attnres", "resnet_ddpm_attnres"])
def test_diagnostics_do_not_change_the_agent(
    make_trainer: MakeTrainer, batch: dict[str, Any], tmp_path: Path, agent: str
) -> None:
    plain, diagnosed = (make_trainer(f"agent={agent}", "agent.head.n_emb=32") for _ in range(2))
    metrics = run_diagnostics(diagnosed.agent, batch, RunDir(tmp_path))
    assert (tmp_path / DEPTH_WEIGHTS_FILE).read_bytes().startswith(b"\x89PNG")
    assert diagnosed.agent.training
    assert any(name.startswith("du_dt/") for name in metrics) == ("imf" in agent)
    assert all(value > 0.0 for value in metrics.values())
    for trainer in (plain, diagnosed):
        torch.manual_seed(0)
        trainer.update(batch)
    for name, value in plain.agent.state_dict().items():
        assert torch.equal(value, diagnosed.agent.state_dict()[name]), name
