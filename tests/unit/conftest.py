"""Keeps unit tests fast: no Ray cluster, no processes, no rendering."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="package", autouse=True)
def no_cluster_no_process_no_rendering() -> Iterator[None]:
    """Make a unit test fail that starts Ray, a process, or a renderer."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("Unit tests start no Ray, process or renderer: see tests/integration.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", refuse)
        patch.setattr("ray.init", refuse)
        patch.setattr("imf_ray.sim.rendering.CameraRenderer.__init__", refuse)
        yield
