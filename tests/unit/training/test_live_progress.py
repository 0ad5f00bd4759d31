"""Progress files, which move the bars of a run between two lines of its metrics."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from imf_ray.training import live_progress
from imf_ray.training.live_progress import (
    PROGRESS_DIR,
    UPDATES,
    VALIDATION,
    ProgressWriter,
    read_progress,
)
from imf_ray.training.progress import WAITING, RunProgress
from imf_ray.training.run_dir import RunDir


def test_the_newest_count_is_read(tmp_path: Path) -> None:
    assert read_progress(tmp_path, UPDATES) is None
    writer = ProgressWriter(tmp_path, UPDATES, total=10)
    writer.write(3, step=3)
    progress = read_progress(tmp_path, UPDATES)
    assert progress is not None
    assert (progress.completed, progress.total, progress.step) == (3, 10, 3)
    writer.write(4, step=4)  # too soon after the last write
    assert read_progress(tmp_path, UPDATES) == progress
    writer.write(10, step=10)
    last = read_progress(tmp_path, UPDATES)
    assert last is not None and last.completed == 10


@pytest.mark.parametrize("content", ["", "{", "[]", '{"completed": 1}', "\x00"])
def test_a_damaged_file_is_no_progress(tmp_path: Path, content: str) -> None:
    file = tmp_path / PROGRESS_DIR / f"{UPDATES}.json"
    file.parent.mkdir()
    file.write_text(content)
    assert read_progress(tmp_path, UPDATES) is None


def test_a_folder_that_cannot_be_written_does_not_stop_training(tmp_path: Path) -> None:
    (tmp_path / PROGRESS_DIR).write_text("a file where the folder would be")
    ProgressWriter(tmp_path, UPDATES, total=10).write(3, step=3)
    assert read_progress(tmp_path, UPDATES) is None


def test_bars_move_between_lines_of_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_progress, "WRITE_INTERVAL_S", 0.0)
    output = io.StringIO()
    console = Console(file=output, width=110, force_terminal=True, color_system=None)
    run_dir = RunDir(tmp_path / "run")
    ProgressWriter(run_dir.path, UPDATES, total=500).write(499, step=499)  # of an earlier launch
    time.sleep(0.01)
    with RunProgress({run_dir: 500}, console) as progress:
        progress._poll()
        assert "499/500" not in output.getvalue() and WAITING in output.getvalue()
        ProgressWriter(run_dir.path, UPDATES, total=500).write(120, step=120)
        ProgressWriter(run_dir.path, VALIDATION, total=20).write(7, step=100)
        progress._poll()
    assert "120/500" in output.getvalue()
    assert "validation of step 100: 7 of 20 episodes" in output.getvalue()
