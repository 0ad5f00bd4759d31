"""Ray's dashboard during and after a submitted sweep, as a browser shows it."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.helpers.browser import Browser
from tests.helpers.configs import TINY_TRAINING
from tests.helpers.head_node import Head, start_head

SPACE = """
fixed:
  agent: state_imf_attnres
  agent.head.n_emb: 16
  agent.head.n_head: 2
  agent.head.n_kv_head: 2
grid:
  agent.head.n_layer: [1, 2]
"""
TRIALS = ("00000-n_layer_1", "00001-n_layer_2")
PAGES = ("Overview", "Jobs", "Serve", "Cluster", "Actors", "Metrics", "Logs")
ROLES = (
    "trial {}",
    "reports of {}",
    "controller of {}",
    "training worker 0 of {}",
)
SHARED = ("JobSupervisor", "TrainStateActor", "_StatsActor", "_AutoscalingCoordinatorActor")
"""Ray's actors that belong to no run."""
RAW_LINES = ("(raylet)", "issues/3644", "INFO worker.py", "INFO tune.py", "WARNING", "Traceback")
SHOW_TIMEOUT_S, END_TIMEOUT_S = 180.0, 60.0


def test_the_dashboard_names_every_job_actor_and_task_and_counts_no_failure(
    demonstrations: Path, tmp_path: Path
) -> None:
    space = tmp_path / "two.yaml"
    space.write_text(SPACE)
    command = [
        *(sys.executable, "-m", "imf_ray.tune", *TINY_TRAINING),
        *(f"search_space={space}", f"data.dataset_dir={demonstrations}"),
        *(f"storage_path={tmp_path}/runs", "run_name=watched", "task.max_episode_steps=60"),
    ]
    log: list[str] = []
    with Browser() as browser, start_head(require_token=False) as head:

        def submit() -> None:
            submitted = head.submit("watched", *command, metadata={"job_name": "two depths"})
            log.append(submitted.stdout)

        def show(path: str, pattern: str) -> str:
            """Return the text of a page of the dashboard once it matches a pattern."""
            page = browser.open(f"{head.url}/#/{path}", width=1600)
            page.wait_for(f"/{pattern}/.test(document.body.innerText)", SHOW_TIMEOUT_S)
            text = page.text()
            page.close()
            return text

        job = threading.Thread(target=submit)
        job.start()
        seen: set[str] = set()
        while not any(text.startswith("training worker") for text in seen) and job.is_alive():
            seen |= {actor["reprName"] for actor in _actors(head)}
            job.join(1.0)
        assert job.is_alive(), log
        show("actors", rf"training worker 0 of {TRIALS[0]}|training worker 0 of {TRIALS[1]}")
        while job.is_alive():
            seen |= {actor["reprName"] for actor in _actors(head)}
            job.join(1.0)
        assert "'watched' succeeded" in log[0], log[0]
        assert {role.format(trial) for role in ROLES for trial in TRIALS} <= seen
        assert {f"rollout actor 0 of {trial}/checkpoint_00000004" for trial in TRIALS} <= seen
        assert "rollout actor 0 of expert" in seen
        _check_actors(head)
        _check_tasks(head)

        show("overview", r"[\s\S]*".join((*PAGES, "Recent jobs")))
        (job_info,) = [job for job in head.get("/api/jobs/") if job["submission_id"] == "watched"]
        jobs = show("jobs", "two depths")
        assert "watched" in jobs and "SUCCEEDED" in jobs
        assert "Failed:" not in show(f"jobs/{job_info['job_id']}", r"Finished: [1-9]")
        show("actors", r"rollout actor \d of")
        show("serve", "Serve not started|status code 501")  # 501 without ray[serve]
        show("metrics", "Set up Prometheus and Grafana")
        page = browser.open(f"{head.url}/#/train")  # the API has runs, but no page shows them
        page.listen(2.0)
        assert not any(trial in page.text() for trial in TRIALS)
    lines = log[0].partition("Running entrypoint")[2].partition("Job 'watched'")[0]
    assert not [line for line in lines.splitlines() for raw in RAW_LINES if raw in line], lines


def _actors(head: Head) -> list[dict[str, Any]]:
    """Return the actors as the Actors page gets them."""
    return list(head.get("/logical/actors")["data"]["actors"].values())


def _tasks(head: Head) -> list[dict[str, Any]]:
    return head.get("/api/v0/tasks?limit=10000&detail=1")["data"]["result"]["result"]


def _check_actors(head: Head) -> None:
    """Every actor of the job says its trial, or has a name because all jobs share it."""
    for actor in _actors(head):
        if actor["actorClass"] not in SHARED:
            assert any(name in actor["reprName"] for name in (*TRIALS, "expert")), actor


def _check_tasks(head: Head) -> None:
    deadline = time.monotonic() + END_TIMEOUT_S
    while any(task["state"] != "FINISHED" for task in _tasks(head)):
        failed = [task for task in _tasks(head) if task["state"] == "FAILED"]
        assert not failed and time.monotonic() < deadline, failed
        time.sleep(1.0)
    names = {task["name"] for task in _tasks(head)}
    for trial in TRIALS:
        assert f"Read {trial} rank 0" in names and f"validation of {trial}" in names
        assert f"action error of {trial}/checkpoint_00000004" in names
