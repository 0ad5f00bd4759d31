"""A Ray cluster with a dashboard, started by `ray start --head`, and jobs submitted to it."""

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
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers import REPO_ROOT
from tests.helpers.commands import COMMAND_TIMEOUT_S

RAY = str(Path(sys.executable).parent / "ray")
NUM_PORTS = 4
"""Number of consecutive ports of a head node."""
START_TIMEOUT_S, STOP_TIMEOUT_S = 600, 60
PROMETHEUS_TARGETS = "prom_metrics_service_discovery.json"
"""File in Ray's folder that lists the metrics endpoints for Prometheus."""


@dataclass(frozen=True)
class Head:
    """A running head node: its dashboard, its folder, and the environment for its clients."""

    url: str
    folder: Path
    environment: dict[str, str]

    def get(self, path: str, token: bool = True) -> Any:
        """Return a JSON response of the dashboard's API."""
        headers = {}
        if token and "RAY_AUTH_TOKEN" in self.environment:
            headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(self.url + path, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def metrics(self) -> list[str]:
        """Return all lines that Prometheus would scrape now."""
        lines: list[str] = []
        for group in json.loads((self.folder / PROMETHEUS_TARGETS).read_text()):
            for target in group["targets"]:
                with urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as response:
                    lines += response.read().decode().splitlines()
        return lines

    def submit(
        self, name: str, *command: str, metadata: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Submit a job and wait for its end. Submit again while Ray reports it is not ready.

        Args:
            name: submission id of the job.
        """
        options = [f"--submission-id={name}", f"--metadata-json={json.dumps(metadata or {})}"]
        options += ["--runtime-env=runtime_env.yaml", "--working-dir=."]
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            submitted = subprocess.run(
                [RAY, "job", "submit", f"--address={self.url}", *options, "--", *command],
                cwd=REPO_ROOT,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=COMMAND_TIMEOUT_S,
            )
            if "No available agent" not in submitted.stderr or time.monotonic() > deadline:
                return submitted
            time.sleep(1)


@contextlib.contextmanager
def start_head(require_token: bool, variables: Mapping[str, str] | None = None) -> Iterator[Head]:
    """Start a head node with two CPUs on ports of its own. It is stopped by its process id.

    Args:
        variables: further environment variables of the node and of its clients.
    """
    port = _free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_metrics_report_interval_ms": "1000"}
    environment["RAY_worker_maximum_startup_concurrency"] = "8"  # as in docs/cluster.md
    if require_token:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    else:
        environment |= {"RAY_AUTH_MODE": "disabled"}
    environment |= variables or {}
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
        head = Head(f"http://127.0.0.1:{port + 1}", Path(folder), environment)
        try:
            _wait_for_dashboard(head)
            yield head
        finally:
            process.terminate()  # it ends its children in order
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    """Return the first of `NUM_PORTS` free ports, outside of those of Ray's workers (10002-19999).

    Test processes that run at the same time have neighbouring ids, so each takes another block.
    """
    first = 21000 + os.getpid() % 1000 * NUM_PORTS
    for port in range(first, 32000, NUM_PORTS):
        if not any(_is_in_use(port + offset) for offset in range(NUM_PORTS)):
            return port
    raise RuntimeError("no free port")


def _is_in_use(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_for_dashboard(head: Head) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            head.get("/api/jobs/")
            return
        except OSError:
            assert time.monotonic() < deadline, "the dashboard did not come up"
            time.sleep(1)
