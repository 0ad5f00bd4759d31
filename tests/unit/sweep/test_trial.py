"""The trial's side of Tune, without Ray."""

from __future__ import annotations

import queue

from imf_ray.sweep.trial import _ForwardReports
from imf_ray.training.reporting import EARLIER_VALIDATIONS_KEY


def test_every_validation_is_forwarded_in_order() -> None:
    """Two may have ended since the last checkpoint; a scheduler compares trials at each step."""
    reports: queue.Queue[dict[str, object]] = queue.Queue()
    early, late = {"validated_step": 2}, {"validated_step": 4, "step": 6}
    _ForwardReports(reports).after_report(
        None, [{**late, EARLIER_VALIDATIONS_KEY: [early]}, {"step": 6}], None
    )
    assert [reports.get(), reports.get()] == [early, late] and reports.empty()
