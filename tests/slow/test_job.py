"""A sweep submitted as a Ray job to a `ray start --head` cluster that requires a token."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import REPO_ROOT
from tests.helpers.commands import COMMAND_TIMEOUT_S
from tests.helpers.configs import TINY_AGENT, TINY_TRAINING

RAY = str(Path(sys.executable).parent / "ray")
START_TIMEOUT_S = 600
GAUGE, TRIAL = "ray_imf_ray_", "00000-n_emb_16"
PROMETHEUS_TARGETS = "prom_metrics_service_discovery.json"
"""File in Ray's folder that lists the metrics endpoints for Prometheus."""
SPACE = """
fixed:
  agent: resnet_imf_attnres_multitoken
  agent.head.n_head: 2
grid:
  agent.head.n_emb: [16]
"""


@dataclass(frozen=True)
class Head:
    """A running head node: its dashboard, its metrics, and the environment for its clients."""

    url: str
    folder: Path
    environment: dict[str, str]

    def get(self, path: str, token: bool = True) -> object:
        """Return a JSON response of the dashboard's API."""
        headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(self.url + path, headers=headers if token else {})
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def gauges(self, run: str) -> set[str]:
        """Return the names of a run's gauges that Prometheus would scrape now."""
        names = set()
        for group in json.loads((self.folder / PROMETHEUS_TARGETS).read_text()):
            for target in group["targets"]:
                with urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as response:
                    lines = response.read().decode().splitlines()
                names |= {line.partition("{")[0] for line in lines if f'run="{run}"' in line}
        return {name.removeprefix(GAUGE) for name in names if name.startswith(GAUGE)}


def _free_port() -> int:
    """Return a free port outside of the range of Ray's workers (10002-19999)."""
    for port in range(21000 + os.getpid() % 5000, 32000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError("no free port")


@pytest.fixture
def head() -> Iterator[Head]:
    """A head node with two CPUs. It is stopped by its process id."""
    port = _free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_metrics_report_interval_ms": "1000"}
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
        running = Head(f"http://127.0.0.1:{port + 1}", Path(folder), environment)
        try:
            _wait_for_dashboard(running)
            yield running
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(START_TIMEOUT_S)


def _wait_for_dashboard(head: Head) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            head.get("/api/jobs/")
            return
        except OSError:
            assert time.monotonic() < deadline, "the dashboard did not come up"
            time.sleep(1)


def _submit(head: Head, *command: str) -> subprocess.CompletedProcess[str]:
    """Submit a job and wait for its end. Submit again while Ray reports that it is not ready."""
    options = ["--submission-id=sweep", "--runtime-env=runtime_env.yaml", "--working-dir=."]
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        submitted = subprocess.run(
            [RAY, "job", "submit", f"--address={head.url}", *options, "--", *command],
            cwd=REPO_ROOT,
            env=head.environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        if "No available agent" not in submitted.stderr or time.monotonic() > deadline:
            return submitted
        time.sleep(1)


def test_a_submitted_sweep_runs_and_is_shown_on_the_dashboard(
    head: Head, demonstrations: Path, tmp_path: Path
) -> None:
    space = tmp_path / "one.yaml"
    space.write_text(SPACE)
    varied = ("agent.head.n_emb", "agent.head.n_head")
    options = [o for o in (*TINY_AGENT, *TINY_TRAINING) if not o.startswith(varied)]
    scraped: list[set[str]] = []
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(1.0):
            with contextlib.suppress(OSError):  # until the metrics are served
                scraped.append(head.gauges(TRIAL))

    scraper = threading.Thread(target=scrape)
    scraper.start()
    submitted = _submit(
        head,
        *(sys.executable, "-m", "imf_ray.tune"),
        *options,
        f"search_space={space}",
        f"data.dataset_dir={demonstrations}",
        f"storage_path={tmp_path}/runs",
        "run_name=job",
        "train.max_steps=2",
        "task.max_episode_steps=60",
    )
    ended.set()
    scraper.join()
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert (tmp_path / "runs/job/sweep.json").is_file()
    jobs = head.get("/api/jobs/")
    assert [job["status"] for job in jobs if job["submission_id"] == "sweep"] == ["SUCCEEDED"]
    runs = head.get("/api/train/v2/runs/v1")["train_runs"]
    assert [(run["name"], run["status"]) for run in runs] == [(TRIAL, "FINISHED")]
    launch_gauges = {"restarts", "skipped_episodes", "invalid_checkpoints_skipped"}
    training_gauges = {"loss", "samples_per_s", "data_wait_frac"}
    assert any({*launch_gauges, *training_gauges} <= names for names in scraped)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        head.get("/api/jobs/", token=False)
    list_jobs = [RAY, "job", "list", f"--address={head.url}"]
    env_without_token = {k: v for k, v in head.environment.items() if not k.startswith("RAY_AUTH_")}
    refused = subprocess.run(
        list_jobs, env=env_without_token, capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0 and "RAY_AUTH_MODE" in refused.stdout + refused.stderr
    subprocess.run(list_jobs, env=head.environment, capture_output=True, check=True)
