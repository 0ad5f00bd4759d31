"""A sweep submitted as a Ray job to a cluster that `ray start --head` made."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import COMMAND_LIMIT_S, TINY_AGENT, TINY_TRAINING

ROOT = Path(__file__).parents[1]
RAY = str(Path(sys.executable).parent / "ray")
START_LIMIT_S = 120
SPACE = """
fixed:
  agent: resnet_imf_attnres_multitoken
  agent.head.n_head: 2
grid:
  agent.head.n_emb: [16]
"""


@dataclass(frozen=True)
class Head:
    """A running head node: its dashboard, and the environment of its clients."""

    url: str
    environment: dict[str, str]

    def get(self, path: str) -> object:
        """An answer of the dashboard's API."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)


def _free_port() -> int:
    """A port outside of the range that Ray gives its workers (10002-19999)."""
    for port in range(21000 + os.getpid() % 5000, 32000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError("no free port")


@pytest.fixture
def head() -> Iterator[Head]:
    """`ray start --head` on two CPUs, ended by its process id."""
    port = _free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        process = subprocess.Popen(
            [
                RAY,
                "start",
                "--head",
                "--block",
                "--num-cpus=2",
                f"--port={port}",
                f"--dashboard-port={port + 1}",
                f"--ray-client-server-port={port + 2}",
                f"--dashboard-agent-listen-port={port + 3}",
                "--dashboard-host=127.0.0.1",
                f"--temp-dir={folder}",
            ],
            env=environment,
            start_new_session=True,
        )
        running = Head(f"http://127.0.0.1:{port + 1}", environment)
        try:
            _wait_until_it_answers(running)
            yield running
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(START_LIMIT_S)


def _wait_until_it_answers(head: Head) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            head.get("/api/jobs/")
            return
        except OSError:
            assert time.monotonic() < deadline, "the dashboard did not come up"
            time.sleep(1)


def test_a_submitted_sweep_runs_and_is_shown(
    head: Head, demonstrations: Path, tmp_path: Path
) -> None:
    space = tmp_path / "one.yaml"
    space.write_text(SPACE)
    varied = ("agent.head.n_emb", "agent.head.n_head")
    options = [o for o in (*TINY_AGENT, *TINY_TRAINING) if not o.startswith(varied)]
    submitted = subprocess.run(
        [
            RAY,
            "job",
            "submit",
            f"--address={head.url}",
            "--submission-id=sweep",
            "--runtime-env=runtime_env.yaml",
            "--working-dir=.",
            "--",
            *(sys.executable, "-m", "imf_ray.tune"),
            *options,
            f"search_space={space}",
            f"data.dataset_dir={demonstrations}",
            f"storage_path={tmp_path}/runs",
            "run_name=job",
            "train.max_steps=2",
            "task.max_episode_steps=60",
        ],
        cwd=ROOT,
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_LIMIT_S,
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert (tmp_path / "runs/job/sweep.json").is_file()
    jobs = head.get("/api/jobs/")
    assert [job["status"] for job in jobs if job["submission_id"] == "sweep"] == ["SUCCEEDED"]
    runs = head.get("/api/train/v2/runs/v1")["train_runs"]
    assert [(run["name"], run["status"]) for run in runs] == [("00000-n_emb_16", "FINISHED")]
