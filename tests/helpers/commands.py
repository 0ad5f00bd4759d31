"""Commands of the package in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers import REPO_ROOT

COMMAND_TIMEOUT_S = 1200
"""Seconds after which a command counts as hung. Shared machines can be ten times slower."""


def run_command(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`python -m imf_ray.MODULE` in a process and a cluster of its own, as a user types it."""
    return subprocess.run(
        [sys.executable, "-m", f"imf_ray.{module}", *arguments],
        cwd=cwd,
        env=command_environment(),
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )


def begin_command(module: str, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """The same under way; what it prints is dropped, but for its errors."""
    return subprocess.Popen(
        [sys.executable, "-m", f"imf_ray.{module}", *arguments],
        cwd=cwd,
        env=command_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def command_environment() -> dict[str, str]:
    """What the package's commands find: this checkout, and no cluster."""
    environment = {**os.environ, "PYTHONPATH": str(REPO_ROOT)}
    environment.pop("RAY_ADDRESS", None)
    return environment
