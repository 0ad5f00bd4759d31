"""Passes the reports of a trial from Ray Train's controller to the trial, which gives them to Tune.

Ray's own callback for this gives Tune a second queue to read. Tune's loop then deadlocks if both
queues contain a report, as at the end of a trial (Ray 2.60). Ray's `Queue` raises an exception when
nothing arrives in time, and the dashboard counts each of them as a failed task.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.train import UserCallback

from imf_ray.training.reporting import EARLIER_VALIDATIONS_KEY

MAX_WAIT_S = 10.0
"""Maximum time in seconds to wait for a report before checking whether training has ended.

The end of training wakes the trial up at once, unless the node of the `ReportQueue` was lost."""
Report = dict[str, Any]
log = logging.getLogger(__name__)


class ReportQueue:
    """Holds the reports of a trial until the trial takes them. It runs as a Ray actor.

    Args:
        trial: name of the trial, for Ray's dashboard.
    """

    def __init__(self, trial: str) -> None:
        self._trial = trial
        self._reports: list[Report] = []
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"reports of {self._trial}"

    async def put(self, *reports: Report) -> None:
        """Add reports; without any, only end the wait of `take`."""
        self._reports.extend(reports)
        self._changed.set()

    async def take(self, timeout_s: float) -> list[Report]:
        """Remove and return all reports; wait for the first one. Empty if none arrives in time."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        self._changed.clear()
        reports, self._reports = self._reports, []
        return reports


def start_report_queue(trial: str) -> ActorHandle:
    """Start the `ReportQueue` of a trial. It starts again if its node is lost."""
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(**options)(ReportQueue).remote(trial)


class ForwardReports(UserCallback):
    """Ray Train callback that forwards the reports of a run from the controller to the trial."""

    def __init__(self, queue: ActorHandle) -> None:
        self._queue = queue

    def after_report(self, run_context: Any, metrics: list[Report], checkpoint: Any) -> None:
        """Forward rank 0's metrics, after those of earlier validations."""
        latest = dict(metrics[0])
        try:
            ray.get(self._queue.put.remote(*latest.pop(EARLIER_VALIDATIONS_KEY, []), latest))
        except RayActorError as error:  # validations are reported again when the trial ends
            log.warning("A report did not reach Tune: %s", error)


def reports_until_done(queue: ActorHandle, training: Future[Any]) -> Iterator[Report]:
    """Yield each report when it arrives, until training has ended."""
    training.add_done_callback(lambda _: ray.get(queue.put.remote()))
    is_done = False
    while not is_done:
        is_done = training.done()
        yield from ray.get(queue.take.remote(0.0 if is_done else MAX_WAIT_S))
