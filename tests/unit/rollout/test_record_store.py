"""Records on disk: kept at once, found again, never mixed, never silently short."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from imf_ray.errors import UserError
from imf_ray.rollout.record_store import (
    EPISODES_FILE,
    SUMMARY_FILE,
    RecordStore,
    read_records,
    settings_hash,
)
from imf_ray.rollout.records import EpisodeRecord, stage_shares, summarize

SETTINGS = {"num_action_steps": 8, "task": {"shadows": False}}


def record(seed: int, success: bool = True, error: str | None = None) -> EpisodeRecord:
    stage = 4 if success else 2
    poses = {"cube": [0.1, 0.0, 0.02, 1.0, 0.0, 0.0, 0.0]}
    return EpisodeRecord(seed, success, stage, 4, 10.0, 400, poses, "p", SETTINGS, error)


def test_what_was_judged_is_found_again(tmp_path: Path) -> None:
    store = RecordStore(tmp_path, "p", SETTINGS)
    for seed in (3, 1):
        store.add(record(seed))
    with (tmp_path / EPISODES_FILE).open("a") as file:  # a process was killed while it wrote a line
        file.write(json.dumps(asdict(record(2)))[:40])
    again = RecordStore(tmp_path, "p", SETTINGS)
    assert again.records == {3: record(3), 1: record(1)}
    assert again.missing(range(1, 5)) == [2, 4]


def test_an_error_is_tried_again_and_its_record_replaced(tmp_path: Path) -> None:
    store = RecordStore(tmp_path, "p", SETTINGS)
    store.add(record(1, success=False, error="the simulation diverged"))
    assert RecordStore(tmp_path, "p", SETTINGS).missing([1]) == [1]
    store.add(record(1))
    assert RecordStore(tmp_path, "p", SETTINGS).missing([1]) == []
    store.finish([1])
    assert read_records(tmp_path / EPISODES_FILE) == [record(1)]


def test_the_summary_says_how_and_on_which_seeds(tmp_path: Path) -> None:
    store = RecordStore(tmp_path, "p", SETTINGS)
    for seed in (2, 0, 1):
        store.add(record(seed, success=seed != 1, error="lost" if seed == 1 else None))
    store.finish([0, 1], action_error=None, latency={"inference_ms_p50": 1.0})
    summary = json.loads((tmp_path / SUMMARY_FILE).read_text())
    assert summary["seeds"] == [0, 1] and summary["errors"] == {"1": "lost"}
    assert summary["rollout/success_rate"] == 0.5 and summary["rollout/failed"] == 1
    assert summary["settings"] == SETTINGS and "action_error" not in summary
    assert [kept.seed for kept in read_records(tmp_path / EPISODES_FILE)] == [0, 1, 2]


def test_records_of_other_settings_or_policies_are_refused(tmp_path: Path) -> None:
    RecordStore(tmp_path, "p", SETTINGS).add(record(1))
    with pytest.raises(UserError, match=r"num_action_steps=8 \(now 16\)"):
        RecordStore(tmp_path, "p", {**SETTINGS, "num_action_steps": 16})
    with pytest.raises(UserError, match=r"policy p \(now q\).*another evaluate.output_dir"):
        RecordStore(tmp_path, "q", SETTINGS)
    assert settings_hash("p", SETTINGS) != settings_hash("q", SETTINGS)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / EPISODES_FILE).write_text('{"seed": 1}\n')
    with pytest.raises(UserError, match=r"episodes.jsonl, line 1, is not an episode's record"):
        RecordStore(tmp_path, "p", SETTINGS)


def test_summary_and_interval() -> None:
    summary = summarize([record(seed, success=seed < 45) for seed in range(50)])
    assert summary.success_rate == 0.9 and summary.failed == 0
    assert (round(summary.success_ci_low, 2), round(summary.success_ci_high, 2)) == (0.79, 0.96)
    assert summary.stage_shares == {1: 1.0, 2: 1.0, 3: 0.9, 4: 0.9}
    assert stage_shares(summary.metrics()) == summary.stage_shares
    failed = replace(record(50, success=False), error="lost")
    assert summarize([failed]).failed == 1 and "1 ended in an error" in str(summarize([failed]))
    with pytest.raises(ValueError, match="nothing to summarize"):
        summarize([])
