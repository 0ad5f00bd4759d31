"""How commands end."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.chaos_sweep import is_alive
from imf_ray.training.checkpoint import newest_checkpoint
from imf_ray.training.stop_signal import stop_requested
from imf_ray.training.tracking import METRICS_FILE, read_metrics, read_workers
from tests.helpers.commands import COMMAND_TIMEOUT_S, begin_command, command_environment
from tests.helpers.configs import TINY_AGENT, TINY_TRAINING

ENDLESS = """
import os, signal, sys, threading
import ray
from imf_ray.errors import UserError
from imf_ray.cli import run, run_interruptibly
from imf_ray.cluster import init_ray

def main(config, overrides):
    "Work that never ceases to use Ray."
    init_ray(config)
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
    run_interruptibly(work, request_stop, is_safe, resume="the command")

sys.exit(run("endless", main, ["cluster.include_dashboard=false", "cluster.num_cpus=1"]))
"""


def test_what_goes_on_after_an_interruption_does_not_use_ray_again() -> None:
    """It would end the process with another code, or start a cluster of its own."""
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS],
        env=command_environment(),
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.endswith("Interrupted. Go on with:\n  the command\n")


def test_training_stops_with_a_checkpoint_or_at_once(demonstrations: Path, tmp_path: Path) -> None:
    """Ctrl-C once, the command that it prints, and Ctrl-C twice."""
    run_dir = tmp_path / "runs/run"
    options = [*TINY_AGENT, *TINY_TRAINING, "train.save_freq=100000", "run_name=run"]
    options += ["train.max_steps=100000", "train.rollout_val_freq_epochs=0", "cluster.num_cpus=2"]
    begun = begin_command("train", f"data.dataset_dir={demonstrations}", *options, cwd=tmp_path)
    _wait_for_step(3, run_dir, begun)
    begun.send_signal(signal.SIGINT)
    _, errors = begun.communicate(timeout=COMMAND_TIMEOUT_S)
    assert begun.returncode == 130, errors
    saved = newest_checkpoint(run_dir)
    assert saved is not None and saved.step == _last_step(run_dir)

    how, command = errors.splitlines()[-2:]
    assert how == "Interrupted. Go on with:", errors
    python, _, module, *printed = shlex.split(command)
    assert (python, module) == ("python", "imf_ray.train")
    again = begin_command("train", *printed, cwd=tmp_path)
    _wait_for_step(saved.step + 1, run_dir, again)
    held = read_workers(run_dir)[0]["pid"]
    os.kill(held, signal.SIGSTOP)  # there is nobody to write one more checkpoint
    again.send_signal(signal.SIGINT)
    while not stop_requested(run_dir):
        time.sleep(0.1)
    assert again.poll() is None
    again.send_signal(signal.SIGINT)
    _, errors = again.communicate(timeout=COMMAND_TIMEOUT_S)
    assert again.returncode == 130, errors
    assert errors.endswith(f"Go on with:\n{command}\n")
    assert newest_checkpoint(run_dir) == saved
    while is_alive(held):  # stopped or not, it ends with its cluster
        time.sleep(0.1)


def _wait_for_step(step: int, run_dir: Path, command: subprocess.Popen[str]) -> None:
    while _last_step(run_dir) < step:
        assert command.poll() is None
        time.sleep(0.1)


def _last_step(run_dir: Path) -> int:
    losses = [line["step"] for line in read_metrics(run_dir / METRICS_FILE) if "loss" in line]
    return max(losses, default=0)
