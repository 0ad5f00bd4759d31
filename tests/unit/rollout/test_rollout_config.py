"""Settings with which a policy's episodes are executed."""

import pytest

from imf_ray.config import load_config
from imf_ray.errors import UserError
from imf_ray.rollout.rollout_config import agent_rollout_config


def test_options_that_the_objective_refuses_are_named() -> None:
    options = ["agent=resnet_ddpm_attnres", "evaluate.inference_steps=7"]
    with pytest.raises(UserError, match="inference_steps=7 does not divide"):
        agent_rollout_config(load_config(options), noise_seed=0)


def test_a_chunk_limits_the_executed_actions() -> None:
    with pytest.raises(UserError, match=r"evaluate.num_action_steps=16: .* only 15 actions"):
        agent_rollout_config(load_config(["evaluate.num_action_steps=16"]), noise_seed=0)


def test_cameras_of_the_agent_must_be_rendered() -> None:
    with pytest.raises(UserError, match=r"add \['front'\] to data.camera_names"):
        agent_rollout_config(load_config([]), noise_seed=0, camera_names=["r_vis", "top"])
