"""Snapshots of a folder in which runs, sweeps and comparisons appear while it is followed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from imf_ray.errors import UserError
from imf_ray.pages.model import State
from imf_ray.pages.snapshot import SnapshotReader
from testing_support.generated_runs import GeneratedRun, generate_sweep

POLICY = {
    "rollout/success_rate": 0.5,
    "rollout/success_ci_low": 0.2,
    "rollout/success_ci_high": 0.8,
    "rollout/episodes": 8,
}


def names(reader: SnapshotReader) -> list[str]:
    return sorted(row.name for row in reader.read().rows)


def test_a_run_appears_as_soon_as_it_is_one(tmp_path: Path) -> None:
    GeneratedRun(tmp_path / "first")
    reader = SnapshotReader(tmp_path)
    assert names(reader) == ["first"]
    later = tmp_path / "later"
    later.mkdir()
    (later / ".claim").write_text("{}")  # a run begins with its claim
    assert names(reader) == ["first"]
    shutil.copy(tmp_path / "first/config.yaml", later)
    assert names(reader) == ["first", "later"]
    generate_sweep(tmp_path / "sweep", num_trials=2, num_lines=20)
    assert names(reader) == ["first", "later", "sweep"]
    shutil.rmtree(later)
    assert names(reader) == ["first", "sweep"]


def test_a_run_that_is_replaced_by_a_sweep_of_its_name_is_one(tmp_path: Path) -> None:
    GeneratedRun(tmp_path / "again").add_lines(1)
    GeneratedRun(tmp_path / "other")
    reader = SnapshotReader(tmp_path)
    reader.read()
    (tmp_path / "again").rename(tmp_path.parent / "away")
    generate_sweep(tmp_path / "again", num_trials=2, num_lines=20)
    (row,) = (row for row in reader.read().rows if row.name == "again")
    assert row.notes[0] == "Sweep: 0 of 2 trials have ended."


def test_a_comparison_is_a_row_with_a_page(tmp_path: Path) -> None:
    GeneratedRun(tmp_path / "run")
    folder = tmp_path / "comparisons/0a1b"
    folder.mkdir(parents=True)
    reader = SnapshotReader(tmp_path)
    assert names(reader) == ["run"]
    content = {"policies": {"a": {"metrics": POLICY}, "b": {"metrics": POLICY}}, "comparisons": []}
    (folder / "comparison.json").write_text(json.dumps(content))
    (row,) = (row for row in reader.read().rows if row.name == "comparisons/0a1b")
    assert row.link == "comparisons/0a1b/" and row.state == State.FINISHED
    assert SnapshotReader(tmp_path / "comparisons/0a1b").read().kind == "comparison"


def test_a_folder_that_becomes_something_else_is_read_as_that(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    GeneratedRun(folder / "run")
    reader = SnapshotReader(folder)
    assert reader.read().kind == "storage"
    shutil.rmtree(folder / "run")
    with pytest.raises(UserError, match=f"{folder} is an empty folder, which has no page"):
        reader.read()
    shutil.rmtree(folder)
    GeneratedRun(folder)
    assert reader.read().kind == "run"
