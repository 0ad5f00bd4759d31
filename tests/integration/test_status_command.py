"""`imf-ray status DIR --watch` in a terminal and into a pipe, while a run goes on."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

from testing_support.generated_runs import GeneratedRun
from tests.helpers.commands import COMMAND_TIMEOUT_S, command_environment

WIDTH, HEIGHT = 80, 24


def start_watch(folder: Path, stdout: int) -> subprocess.Popen[bytes]:
    environment = {**command_environment(), "TERM": "xterm-256color"}
    environment.pop("COLUMNS", None)
    return subprocess.Popen(
        [sys.executable, "-m", "imf_ray.status", str(folder), "--watch"],
        stdin=stdout,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )


def read_until(descriptor: int, text: str, output: list[str]) -> None:
    """Read into `output` until it contains a text."""
    end = time.monotonic() + COMMAND_TIMEOUT_S
    while text not in "".join(output):
        assert time.monotonic() < end, "".join(output)
        if select.select([descriptor], [], [], 1.0)[0]:
            output.append(os.read(descriptor, 65536).decode(errors="replace"))


def test_a_terminal_shows_changes_until_ctrl_c(tmp_path: Path) -> None:
    run = GeneratedRun(tmp_path / "transfer", started_at=time.time() - 40.0)
    run.add_lines(4)
    terminal, end_of_process = pty.openpty()
    fcntl.ioctl(end_of_process, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    watching = start_watch(run.path, end_of_process)
    output: list[str] = []
    read_until(terminal, "400/20000 2%", output)
    run.add_lines(4)
    read_until(terminal, "800/20000 4%", output)
    watching.send_signal(signal.SIGINT)
    assert watching.wait(COMMAND_TIMEOUT_S) == 0
    read_until(terminal, "\x1b[?1049l", output)  # the end of the screen of its own
    read_until(terminal, "last entry", output)
    os.close(terminal)
    os.close(end_of_process)
    assert watching.stderr is not None and not watching.stderr.read()
    last_table = "".join(output).rpartition("\x1b[?1049l")[2]
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", last_table).splitlines()
    assert lines[0].startswith("transfer: running") and max(map(len, lines)) <= WIDTH


def test_a_pipe_gets_a_table_for_each_result(tmp_path: Path) -> None:
    run = GeneratedRun(tmp_path / "transfer", started_at=time.time() - 40.0)
    run.add_lines(4)
    reader, writer = os.pipe()
    watching = start_watch(tmp_path, writer)
    os.close(writer)
    output: list[str] = []
    read_until(reader, "running", output)
    run.add_lines(20)  # with a validation
    read_until(reader, "Best success so far", output)
    watching.send_signal(signal.SIGINT)
    assert watching.wait(COMMAND_TIMEOUT_S) == 0
    os.close(reader)
    assert "\x1b" not in "".join(output) and "".join(output).count("1 folder: 1 running") == 2
