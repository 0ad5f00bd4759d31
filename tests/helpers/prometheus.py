"""A Prometheus that scrapes a Ray cluster, started from Debian's package."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PROMETHEUS = shutil.which("prometheus")
START_TIMEOUT_S = 120


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of a response of the API.

        Raises:
            AssertionError: Prometheus reports an error.
        """
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def series(self, query: str, start: float, end: float) -> list[Mapping[str, str]]:
        """Return the labels of the series of a query that have a finite value in a time range.

        Args:
            start: beginning of the range in seconds since 1970; `end` accordingly.
        """
        times = {"start": str(start), "end": str(end), "step": "2"}
        result = self.get("query_range", query=query, **times)["result"]
        return [
            series["metric"]
            for series in result
            if any(math.isfinite(float(value)) for _, value in series["values"])
        ]


@contextlib.contextmanager
def start_prometheus(config_file: Path, targets: Path, folder: Path) -> Iterator[Prometheus]:
    """Start Prometheus with a configuration, but with other targets and one scrape a second.

    Args:
        targets: the file in which Ray lists the addresses of its nodes.
        folder: an empty folder for its files.
    """
    assert PROMETHEUS is not None
    config = yaml.safe_load(config_file.read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (scrape,) = config["scrape_configs"]
    (files,) = scrape["file_sd_configs"]
    scrape["file_sd_configs"] = [{**files, "files": [str(targets)], "refresh_interval": "1s"}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        prometheus = Prometheus(f"http://{address}")
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                urllib.request.urlopen(f"{prometheus.url}/-/ready", timeout=30).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.name
                time.sleep(0.2)
        yield prometheus
    finally:
        process.terminate()
        process.wait()
