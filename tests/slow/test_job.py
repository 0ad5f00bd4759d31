"""A sweep submitted as a Ray job to a `ray start --head` cluster that requires a token."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.configs import TINY_AGENT, TINY_TRAINING
from tests.helpers.head_node import RAY, Head, start_head

GAUGE, TRIAL = "ray_imf_ray_", "00000-n_emb_16"
SPACE = """
fixed:
  agent: resnet_imf_attnres_multitoken
  agent.head.n_head: 2
grid:
  agent.head.n_emb: [16]
"""


@pytest.fixture
def head() -> Iterator[Head]:
    """A head node with two CPUs that requires a token."""
    with start_head(require_token=True) as running:
        yield running


def _gauges(head: Head, run: str) -> set[str]:
    """Return the names of a run's gauges that Prometheus would scrape now."""
    names = {line.partition("{")[0] for line in head.metrics() if f'trial="{run}"' in line}
    return {name.removeprefix(GAUGE) for name in names if name.startswith(GAUGE)}


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
                scraped.append(_gauges(head, TRIAL))

    scraper = threading.Thread(target=scrape)
    scraper.start()
    submitted = head.submit(
        "sweep",
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
    launch_gauges = {"restarts", "skipped_episodes", "invalid_checkpoints"}
    training_gauges = {"loss", "samples_per_second", "data_wait_ratio"}
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
