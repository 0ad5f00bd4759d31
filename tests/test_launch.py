"""How commands end."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import COMMAND_LIMIT_S, command_environment

ENDLESS = """
import os, signal, sys, threading
import ray
from imf_ray.errors import UserError
from imf_ray.launch import connect, interruptible, run

def main(config, overrides):
    "Work that never ceases to use Ray."
    connect(config)
    begun, failing = threading.Event(), iter([True, True, False])

    def work():
        while True:
            ray.put(1)
            if not begun.is_set():
                begun.set()
                os.kill(os.getpid(), signal.SIGINT)

    def request_stop():
        if next(failing):
            raise UserError("the bucket does not answer")

    is_safe = lambda: next(failing, None) is None
    interruptible(work, request_stop, is_safe, resume="the command")

sys.exit(run("endless", main, ["cluster.dashboard=false", "cluster.num_cpus=1"]))
"""


def test_what_goes_on_after_an_interruption_does_not_use_ray_again() -> None:
    """It would end the process with another code, or start a cluster of its own."""
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS],
        env=command_environment(),
        capture_output=True,
        text=True,
        timeout=COMMAND_LIMIT_S,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.endswith("Interrupted. Go on with:\n  the command\n")
