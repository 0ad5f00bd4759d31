"""Schedulers without Ray: which trials they ask to stop, and what they do after a resume."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from imf_ray.files import append_line
from imf_ray.sweep.schedulers import make_scheduler
from imf_ray.sweep.trial_record import STOPPED, TrialDir, TrialRecord


def make_trial_dirs(folder: Path, names: str) -> dict[str, TrialDir]:
    for name in names:
        (folder / name).mkdir()
    return {name: TrialDir(folder / name) for name in names}


def log_validation(trial_dir: TrialDir, time: float, step: int, success: float) -> None:
    line = {"step": step, "time": time, "validated_step": step, "rollout/success_rate": success}
    append_line(trial_dir.path / "metrics.jsonl", json.dumps(line))


def test_logged_validations_are_replayed_in_the_order_in_which_they_ended(tmp_path: Path) -> None:
    """ASHA keeps the first trial at a rung; a pending request to stop is repeated on resume.

    A trial that has reached its last step is not asked to stop, although ASHA returns STOP for it.
    """
    trial_dirs = make_trial_dirs(tmp_path, "abc")
    log_validation(trial_dirs["b"], time=2.0, step=1000, success=0.5)
    log_validation(trial_dirs["a"], time=1.0, step=1000, success=0.3)
    log_validation(trial_dirs["c"], time=3.0, step=1000, success=0.1)
    log_validation(trial_dirs["b"], time=4.0, step=6000, success=0.5)
    make_scheduler({"asha": {"grace_period": 1000, "reduction_factor": 2}}, 6000, trial_dirs)
    assert [name for name, folder in trial_dirs.items() if folder.stop_requested()] == ["c"]


@pytest.mark.parametrize(
    "spec",
    [
        {"median_stopping": {"grace_period": 1, "min_samples_required": 2}},
        {"asha": {"grace_period": 1, "reduction_factor": 2}},
    ],
)
def test_a_trial_that_falls_behind_is_asked_to_stop(
    tmp_path: Path, spec: dict[str, dict[str, Any]]
) -> None:
    """Reports without a validation, and repeated ones, are accepted."""
    trial_dirs = make_trial_dirs(tmp_path, "abc")
    scheduler = make_scheduler(spec, 100, trial_dirs)
    for step in (1, 2, 3):
        for name, success in (("a", 0.9), ("b", 0.8), ("c", 0.1)):
            report = {"validated_step": step, "rollout/success_rate": success}
            for result in (report, {"loss": 1.0}, {**report, "done": True}):
                assert scheduler.on_trial_result(None, name, result) == "CONTINUE"
            scheduler.on_trial_complete(None, name, {"status": "finished"})
    assert trial_dirs["c"].stop_requested() and not trial_dirs["a"].stop_requested()
    trial_dirs["c"].write_record(TrialRecord("c", {}, STOPPED))
    trial_dirs["c"].clear_stop()
    scheduler.on_trial_result(None, "c", {"loss": 1.0})
    assert not trial_dirs["c"].stop_requested()


def test_a_request_to_stop_that_cannot_be_written_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk must not end Tune's loop."""

    def fail(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    trial_dirs = make_trial_dirs(tmp_path, "ab")
    scheduler = make_scheduler(
        {"asha": {"grace_period": 1, "reduction_factor": 2}}, 100, trial_dirs
    )
    monkeypatch.setattr("pathlib.Path.touch", fail)
    for name, success in (("a", 0.9), ("b", 0.1)):
        report = {"validated_step": 1, "rollout/success_rate": success}
        assert scheduler.on_trial_result(None, name, report) == "CONTINUE"
    monkeypatch.undo()
    assert scheduler.on_trial_result(None, "b", {"loss": 1.0}) == "CONTINUE"
    assert trial_dirs["b"].stop_requested()
