"""The way of a trial's reports from Ray Train's controller to Tune, without Ray."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from imf_ray.sweep import trial_reports
from imf_ray.sweep.trial_reports import ForwardReports, ReportQueue
from imf_ray.training.reporting import EARLIER_VALIDATIONS_KEY


def test_every_validation_is_forwarded_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two may have ended since the last checkpoint; a scheduler compares trials at each step."""
    forwarded: list[dict[str, object]] = []
    queue = SimpleNamespace(put=SimpleNamespace(remote=lambda *reports: forwarded.extend(reports)))
    monkeypatch.setattr(trial_reports.ray, "get", lambda reference: reference)
    early, late = {"validated_step": 2}, {"validated_step": 4, "step": 6}
    forward: Any = ForwardReports(queue)
    forward.after_report(None, [{**late, EARLIER_VALIDATIONS_KEY: [early]}, {"step": 6}], None)
    assert forwarded == [early, late]


def test_the_queue_answers_that_there_is_nothing_yet_without_an_exception() -> None:
    async def use() -> None:
        queue = ReportQueue("03")
        assert repr(queue) == "reports of 03"
        assert await queue.take(0.01) == []
        await queue.put({"step": 1}, {"step": 2})
        assert await queue.take(60.0) == [{"step": 1}, {"step": 2}]
        waiting = asyncio.ensure_future(queue.take(60.0))
        await asyncio.sleep(0)
        await queue.put({"step": 3})
        assert await waiting == [{"step": 3}]
        await queue.put()  # training has ended
        assert await queue.take(60.0) == []

    asyncio.run(asyncio.wait_for(use(), timeout=30.0))
