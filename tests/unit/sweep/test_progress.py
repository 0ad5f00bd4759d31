"""The table of trials in the log of a sweep."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from imf_ray.files import append_line
from imf_ray.folders import METRICS_FILE
from imf_ray.sweep import progress
from imf_ray.sweep.progress import (
    MAX_ROWS,
    TABLE_WIDTH,
    SweepProgress,
    TrialProgress,
    progress_table,
)
from imf_ray.sweep.status import PENDING, RUNNING, STALLED
from imf_ray.sweep.trial_record import FINISHED, TrialDir
from imf_ray.training.run_records import VALIDATED

SUCCESS = {
    "rollout/success_rate": 0.75,
    "rollout/success_ci_low": 0.6,
    "rollout/success_ci_high": 0.86,
    "rollout/episodes": 40,
}


def test_the_table_has_state_step_success_speed_and_time_left() -> None:
    text = _print(
        TrialProgress("00-n_emb=96", FINISHED, 300, {"step": 300, **SUCCESS}),
        TrialProgress("01-n_emb=128", RUNNING, 300, {"step": 50, "samples_per_s": 812.4}, 75.0),
        TrialProgress("02-n_emb=192", PENDING, 300, {}),
    )
    lines = text.splitlines()
    assert lines[0] == "Trials after 2 min: 1 finished, 1 running, 1 pending"
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("0")}
    assert rows["00-n_emb=96"] == ["finished", "300/300", "0.75", "[0.60,", "0.86]"]
    assert rows["01-n_emb=128"] == ["running", "50/300", "812", "75", "s"]
    assert rows["02-n_emb=192"] == ["pending", "0/300"]


def test_of_many_trials_those_that_need_attention_are_listed() -> None:
    trials = [TrialProgress(f"{number:05d}-pending", PENDING, 9, {}) for number in range(998)]
    trials += [TrialProgress("00998-" + "x" * 90, STALLED, 9, {"step": 3})]
    trials += [TrialProgress("00999-running", RUNNING, 9, {"step": 3})]
    lines = _print(*trials).splitlines()
    assert f"{MAX_ROWS} of 1000 are listed" in lines[0]
    assert "stalled" in lines[3] and "00999-running" in lines[4]
    assert len(lines) < MAX_ROWS + 6 and max(map(len, lines)) <= TABLE_WIDTH


def test_a_log_gets_a_table_each_minute_and_a_line_for_each_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, output = SimpleNamespace(now=0.0), io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    trial = TrialDir(tmp_path / "00-trial")
    sweep: Any = SimpleNamespace(steps={trial: 4}, trial_dirs={"00-trial": trial})
    shown = SweepProgress(sweep, Console(file=output, width=110))
    lines: list[dict[str, Any]] = [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.5},
        {"step": 2, VALIDATED: 1, **SUCCESS},
    ]
    for clock.now, line in zip((1.0, 2.0, 3.0), lines, strict=True):
        append_line(trial.path / METRICS_FILE, json.dumps({**line, "time": time.time()}))
        shown._poll()
    assert output.getvalue() == "00-trial: 2/4, success 0.75 [0.60, 0.86] of 40\n"
    for clock.now in (61.0, 62.0, 122.0):
        shown._poll()
    text = output.getvalue()
    assert text.count("Trials after") == 2 and "Trials after 61 s: 1 running" in text


def _print(*trials: TrialProgress) -> str:
    output = io.StringIO()
    Console(file=output, width=TABLE_WIDTH).print(progress_table(trials, 120.0))
    return output.getvalue()
