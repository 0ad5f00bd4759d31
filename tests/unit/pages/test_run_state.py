"""The state of a run as its folder shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from imf_ray.config import to_yaml
from imf_ray.files import append_line
from imf_ray.folders import METRICS_FILE
from imf_ray.pages.file_cache import FileCache
from imf_ray.pages.model import Row, State
from imf_ray.pages.snapshot_run import RunReader
from imf_ray.training.run_dir import VALIDATIONS_FILE, RunDir
from imf_ray.training.run_records import RESTARTS
from imf_ray.training.tracking import Tracker
from tests.helpers.trainers import config_of


def read(folder: Path, now: float = 1e9) -> Row:
    return RunReader(folder, FileCache()).read_row(now)[1]


def test_a_late_validation_does_not_turn_back_the_step(tmp_path: Path) -> None:
    config, run_dir = config_of("train.max_steps=6"), RunDir(tmp_path)
    run_dir.write_config(to_yaml(config))
    assert read(tmp_path).state == State.PENDING
    tracker = Tracker(run_dir, config, 0, 0)
    tracker.log(6, {"loss": 0.5})
    metrics = {"success_rate": 0.5, "success_ci_low": 0.1, "success_ci_high": 0.9, "episodes": 4}
    line = {"step": 5, **{f"rollout/{name}": value for name, value in metrics.items()}}
    append_line(tmp_path / VALIDATIONS_FILE, json.dumps(line))
    tracker.log_validations()
    tracker.close()
    row = read(tmp_path)
    assert row.state == State.FINISHED and row.step == 5  # that of the best checkpoint
    assert row.success is not None and row.success.rate == 0.5


def test_a_run_is_stalled_after_three_times_its_longest_interval(tmp_path: Path) -> None:
    run_dir, first = RunDir(tmp_path), 1e9
    run_dir.write_config(to_yaml(config_of("train.max_steps=6")))
    lines: list[dict[str, Any]] = [{"step": 0, RESTARTS: 0}, {"step": 1}, {"step": 2}]
    lines += [{"step": 2, RESTARTS: 1}, {"step": 3}]
    times = [0.0, 10.0, 1010.0, 90_000.0, 90_010.0]  # the day before the restart does not count
    for line, seconds in zip(lines, times, strict=True):
        append_line(tmp_path / METRICS_FILE, json.dumps({**line, "time": first + seconds}))
    states = [read(tmp_path, first + 90_010.0 + age).state for age in (400, 2900, 3100)]
    assert states == [State.RUNNING, State.RUNNING, State.STALLED]


def test_damaged_lines_are_counted(tmp_path: Path) -> None:
    RunDir(tmp_path).write_config(to_yaml(config_of("train.max_steps=6")))
    lines = ['{"step": 1, "time": 1.0}', '{"step": 2, "ti{"step": 3, "time": 3.0}', '{"step": 4}']
    (tmp_path / METRICS_FILE).write_text("".join(f"{line}\n" for line in lines))
    row = read(tmp_path, now=11.0)
    assert (row.step, row.last_entry_age_s) == (4, 10.0)
    assert any(METRICS_FILE in note and "1 damaged" in note for note in row.notes)
