"""What the log of a sweep, such as that of a submitted job, shows of its trials."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from imf_ray.config import to_yaml
from imf_ray.files import append_line
from imf_ray.folders import METRICS_FILE
from imf_ray.pages import sweep_progress
from imf_ray.pages.sweep_progress import SweepProgress
from imf_ray.sweep.sweep_dir import SweepDir
from imf_ray.training.run_records import VALIDATED
from tests.helpers.trainers import config_of

SUCCESS = {
    "rollout/success_rate": 0.75,
    "rollout/success_ci_low": 0.6,
    "rollout/success_ci_high": 0.86,
    "rollout/episodes": 40,
}


def test_a_log_gets_a_table_each_minute_and_a_line_for_each_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=0.0)
    monkeypatch.setattr(sweep_progress, "time", clock)
    sweep_dir = SweepDir(tmp_path / "sizes")
    trial = sweep_dir.trial("00-n_emb=96")
    trial.write_config(to_yaml(config_of("train.max_steps=4")))
    append_line(trial.path / METRICS_FILE, json.dumps({"step": 1, "time": time.time()}))
    output = io.StringIO()
    with SweepProgress(sweep_dir, {trial: 4}, Console(file=output, width=110)) as progress:
        lines: list[dict[str, Any]] = [{"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.5}]
        for line in [*lines, {"step": 3, VALIDATED: 1, **SUCCESS}]:
            append_line(trial.path / METRICS_FILE, json.dumps({**line, "time": time.time()}))
        progress._poll()
        assert output.getvalue() == "00-n_emb=96: 3/4, success 0.75 [0.60, 0.86] of 40\n"
        for clock.now in (61.0, 62.0, 122.0):
            progress._poll()
    text = output.getvalue()
    assert text.count("sizes: running. 1 trial: 1 running.") == 2
    assert text.count("00-n_emb=96  running  3/4 75%") == 2


def test_a_folder_that_cannot_be_read_leaves_out_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_progress, "TABLE_INTERVAL_S", 0.0)
    output = io.StringIO()
    with SweepProgress(SweepDir(tmp_path / "gone"), {}, Console(file=output)) as progress:
        progress._poll()
    assert output.getvalue() == ""
