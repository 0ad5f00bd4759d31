"""Functions that run the package's commands in separate processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers import REPO_ROOT

COMMAND_TIMEOUT_S = 1200
"""Seconds after which a command counts as hung. Busy machines may be ten times slower."""


def run_command(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m imf_ray.MODULE` as a user does, with a cluster of its own, to its end."""
    return subprocess.run(
        [sys.executable, "-m", f"imf_ray.{module}", *arguments],
        cwd=cwd,
        env=command_environment(),
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )


def begin_command(module: str, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """Start `python -m imf_ray.MODULE` in a process group of its own, and return at once.

    Only its stderr can be read.
    """
    return subprocess.Popen(
        [sys.executable, "-m", f"imf_ray.{module}", *arguments],
        cwd=cwd,
        env=command_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def command_environment() -> dict[str, str]:
    """Return environment variables for commands: this checkout, and no existing cluster."""
    environment = {**os.environ, "PYTHONPATH": str(REPO_ROOT)}
    environment.pop("RAY_ADDRESS", None)
    return environment
