"""The end of a pool of rollout actors, without Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from imf_ray.rollout import actor_pool
from imf_ray.rollout.actor_pool import RolloutActorPool


def test_an_actor_that_is_still_starting_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would count its start as a failed task. It ends without a reference to it."""
    killed: list[Any] = []
    monkeypatch.setattr(actor_pool.ray, "kill", killed.append)
    pool: Any = object.__new__(RolloutActorPool)
    pool._metrics = SimpleNamespace(close=lambda: None)
    pool._idle = [SimpleNamespace(actor="idle", call="call", ready=True)]
    pool._busy = [
        SimpleNamespace(actor=name, call="call", ready=name == "busy")
        for name in ("busy", "starting")
    ]
    slots = [*pool._busy, *pool._idle]
    pool.stop()
    assert not any(hasattr(slot, "actor") for slot in slots)
    assert killed == ["busy", "idle"] and not pool._busy and not pool._idle
