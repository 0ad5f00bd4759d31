"""The length of the way from `forward` to the loss, counted with a profile hook."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest

import imf_ray.agents
from imf_ray.agents.base import VLAAgent
from imf_ray.agents.ddpm import DDPMVLAAgent
from imf_ray.agents.flow import FlowVLAAgent
from imf_ray.agents.imf import IMFVLAAgent

AGENTS_DIR = str(Path(imf_ray.agents.__file__).parent)
MAX_CALLS, MAX_FILES = 10, 3


class Call(NamedTuple):
    file: str
    function: str


def calls_to_the_loss(agent: VLAAgent, batch: dict[str, Any]) -> list[Call]:
    """All calls of functions of `imf_ray.agents` during `agent(batch)`."""
    calls: list[Call] = []

    def hook(frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(AGENTS_DIR):
            calls.append(Call(Path(code.co_filename).name, code.co_name))

    sys.setprofile(hook)
    try:
        agent(batch)
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("agent_class", [IMFVLAAgent, FlowVLAAgent, DDPMVLAAgent])
def test_the_loss_is_at_most_ten_calls_in_three_files_away(
    make_agent: Callable[..., VLAAgent], batch: dict[str, Any], agent_class: type[VLAAgent]
) -> None:
    options: dict[str, Any] = {"agent_class": agent_class}
    if agent_class is IMFVLAAgent:  # as in agent=resnet_imf_attnres
        options |= {"time_sampler": "logit_normal", "prediction_type": "sample"}
    calls = calls_to_the_loss(make_agent(**options), batch)
    files = {call.file for call in calls}
    print(f"{agent_class.__name__}: {len(calls)} calls in {len(files)} files: {calls}")
    assert calls[0].function == "forward"
    assert "objective_loss" in {call.function for call in calls}
    assert len(calls) <= MAX_CALLS
    assert len(files) <= MAX_FILES
