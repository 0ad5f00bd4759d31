"""Exit codes of interrupted commands, and the files that they leave."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imf_ray.checkpoint_dir import MANIFEST_FILE
from imf_ray.storage import local_dir
from imf_ray.training.run_dir import RunDir
from testing_support.processes import is_alive
from tests.helpers.commands import COMMAND_TIMEOUT_S, begin_command, command_environment
from tests.helpers.configs import TINY_AGENT, TINY_TRAINING

ENDLESS = """
import os, signal, sys, threading
import ray
from imf_ray.cli import run_command
from imf_ray.interrupts import run_interruptibly
from imf_ray.cluster import init_ray
from imf_ray.command import Command
from imf_ray.errors import UserError

def main(config, overrides):
    "Use Ray without end."
    init_ray(config)
    started, storage_fails = threading.Event(), iter([True, True, False])

    def work():
        while True:
            ray.put(1)
            if not started.is_set():
                started.set()
                os.kill(os.getpid(), signal.SIGINT)

    def request_stop():
        if next(storage_fails):
            raise UserError("the bucket does not answer")

    is_safe = lambda: next(storage_fails, None) is None
    run_interruptibly(work, request_stop, is_safe, resume="the command")

options = ["cluster.include_dashboard=false", "cluster.num_cpus=1"]
sys.exit(run_command(Command("endless", main, examples=()), options))
"""


def test_a_thread_that_still_uses_ray_does_not_change_the_exit_code() -> None:
    """A thread that uses Ray after its shutdown could change the code or start a new cluster."""
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS],
        env=command_environment(),
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.endswith("Interrupted. Resume with:\n  the command\n")


CLOSED_STREAMS = """
import os, sys
from imf_ray.terminal import STDOUT, console, open_missing_streams
open_missing_streams()
print("dropped", file=STDOUT, flush=True)
console.print("dropped")
file = open(sys.argv[1], "w")
assert file.fileno() > 2 and None not in (sys.stdin, sys.stdout, sys.stderr)
os.system("echo of a child")
"""


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """Without the null device in its place, a child's output would get into that file."""
    script = 'exec "$0" -c "$1" "$2" >&- 2>&- <&-'
    arguments = ["sh", "-c", script, sys.executable, CLOSED_STREAMS, str(tmp_path / "file")]
    assert subprocess.run(arguments, env=command_environment()).returncode == 0
    assert (tmp_path / "file").read_text() == ""


def test_a_hangup_stops_training_with_a_checkpoint_and_ctrl_c_twice_at_once(
    demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Close the terminal, run the command that it prints, press Ctrl-C twice. Storage is a URL.

    A terminal that closes sends SIGHUP to all processes of the command, also those of Ray.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"file://{tmp_path}/bucket"
    (tmp_path / "bucket").mkdir()
    run_dir = local_dir(url) / "run"
    options = [*TINY_AGENT, *TINY_TRAINING, "train.save_freq=100000", "run_name=run"]
    options += ["train.max_steps=100000", "train.rollout_val_freq_epochs=0", "cluster.num_cpus=2"]
    options += [f"storage_path={url}"]
    first = begin_command("train", f"data.dataset_dir={demonstrations}", *options, cwd=tmp_path)
    _wait_for_step(3, run_dir, first)
    os.killpg(first.pid, signal.SIGHUP)
    _, errors = first.communicate(timeout=COMMAND_TIMEOUT_S)
    assert first.returncode == 130, errors
    saved = RunDir(run_dir).newest_checkpoint()
    assert saved is not None and saved.step == _last_step(run_dir)
    assert (tmp_path / "bucket/run" / saved.path.name / MANIFEST_FILE).is_file()

    hint, resume = errors.splitlines()[-2:]
    assert hint == "Interrupted. Resume with:", errors
    python, _, module, *arguments = shlex.split(resume)
    assert (python, module) == ("python", "imf_ray.train")
    second = begin_command("train", *arguments, cwd=tmp_path)
    _wait_for_step(saved.step + 1, run_dir, second)
    worker_pid = RunDir(run_dir).read_workers()[0]["pid"]
    os.kill(worker_pid, signal.SIGSTOP)  # a stopped worker cannot save a checkpoint
    second.send_signal(signal.SIGINT)
    while not RunDir(run_dir).stop_requested():
        time.sleep(0.1)
    assert second.poll() is None
    second.send_signal(signal.SIGINT)
    _, errors = second.communicate(timeout=COMMAND_TIMEOUT_S)
    assert second.returncode == 130, errors
    assert errors.endswith(f"Resume with:\n{resume}\n")
    assert RunDir(run_dir).newest_checkpoint() == saved
    while is_alive(worker_pid):  # the end of its cluster also ends a stopped worker
        time.sleep(0.1)


def _wait_for_step(step: int, run_dir: Path, command: subprocess.Popen[str]) -> None:
    while _last_step(run_dir) < step:
        assert command.poll() is None
        time.sleep(0.1)


def _last_step(run_dir: Path) -> int:
    losses = [line["step"] for line in RunDir(run_dir).read_metrics() if "loss" in line]
    return max(losses, default=0)
