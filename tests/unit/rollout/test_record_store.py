"""Records on disk: appended at once, found again, never mixed, also of earlier versions."""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from imf_ray.claims import ClaimedError
from imf_ray.errors import UserError
from imf_ray.rollout.record_store import (
    EPISODES_FILE,
    SUMMARY_FILE,
    RecordStore,
    parse_record,
    read_records,
    settings_hash,
)
from imf_ray.rollout.records import EpisodeRecord, describe_success, stage_shares, summarize
from tests.helpers import REPO_ROOT

SETTINGS = {"num_action_steps": 8, "task": {"shadows": False}}


def record(seed: int, success: bool = True, error: str | None = None) -> EpisodeRecord:
    stage = 4 if success else 2
    poses = {"cube": [0.1, 0.0, 0.02, 1.0, 0.0, 0.0, 0.0]}
    return EpisodeRecord(seed, success, stage, 4, 10.0, 400, poses, "p", SETTINGS, error)


def test_stored_records_are_found_again(tmp_path: Path) -> None:
    store = RecordStore(tmp_path, "p", SETTINGS)
    for seed in (3, 1):
        store.add(record(seed))
    with (tmp_path / EPISODES_FILE).open("a") as file:  # written by a process that was killed
        file.write(json.dumps(asdict(record(2)))[:40])
    reopened = RecordStore(tmp_path, "p", SETTINGS)
    assert reopened.records == {3: record(3), 1: record(1)}
    assert reopened.missing(range(1, 5)) == [2, 4]


def test_episode_with_an_error_is_missing_until_it_is_replaced(tmp_path: Path) -> None:
    store = RecordStore(tmp_path, "p", SETTINGS)
    store.add(record(1, success=False, error="the simulation diverged"))
    assert RecordStore(tmp_path, "p", SETTINGS).missing([1]) == [1]
    store.add(record(1))
    assert RecordStore(tmp_path, "p", SETTINGS).missing([1]) == []
    store.finalize([1])
    assert read_records(tmp_path / EPISODES_FILE) == [record(1)]


def test_summary_has_settings_seeds_and_errors(tmp_path: Path) -> None:
    store = RecordStore(tmp_path, "p", SETTINGS)
    for seed in (2, 0, 1):
        store.add(record(seed, success=seed != 1, error="lost" if seed == 1 else None))
    store.finalize([0, 1], action_error=None, latency={"inference_ms_p50": 1.0})
    summary = json.loads((tmp_path / SUMMARY_FILE).read_text())
    assert summary["seeds"] == [0, 1] and summary["errors"] == {"1": "lost"}
    assert summary["rollout/success_rate"] == 0.5 and summary["rollout/failed"] == 1
    assert summary["settings"] == SETTINGS and "action_error" not in summary
    assert [stored.seed for stored in read_records(tmp_path / EPISODES_FILE)] == [0, 1, 2]


def test_records_of_other_settings_or_policies_are_refused(tmp_path: Path) -> None:
    RecordStore(tmp_path, "p", SETTINGS).add(record(1))
    with pytest.raises(UserError, match=r"num_action_steps=8 \(now 16\)"):
        RecordStore(tmp_path, "p", {**SETTINGS, "num_action_steps": 16})
    with pytest.raises(UserError, match=r"policy p \(now q\).*another evaluate.output_dir"):
        RecordStore(tmp_path, "q", SETTINGS)
    assert settings_hash("p", SETTINGS) != settings_hash("q", SETTINGS)


@pytest.mark.parametrize(
    "damaged",
    [
        '{"seed": 1}',
        "[]",
        "null",
        '{"settings": null}',
        json.dumps({**asdict(record(2)), "seed": "2"}),
        json.dumps(asdict(record(2)))[:200],
        json.dumps(asdict(record(2)))[:200] + json.dumps(asdict(record(2))),
    ],
)
def test_the_episode_of_a_damaged_line_is_run_again(
    tmp_path: Path, damaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [json.dumps(asdict(record(1))), damaged, json.dumps(asdict(record(3)))]
    (tmp_path / EPISODES_FILE).write_text("".join(f"{line}\n" for line in lines))
    store = RecordStore(tmp_path, "p", SETTINGS)
    assert store.missing([1, 2, 3]) == [2]
    assert f"line 2 of {tmp_path / EPISODES_FILE}" in caplog.text
    with store.claimed():
        store.add(record(2))
        store.finalize([1, 2, 3])
    assert read_records(tmp_path / EPISODES_FILE) == [record(1), record(2), record(3)]


def test_a_store_that_is_claimed_knows_what_others_have_written(tmp_path: Path) -> None:
    first, second = (RecordStore(tmp_path, "p", SETTINGS) for _ in range(2))
    with first.claimed():
        first.add(record(1))
        with pytest.raises(ClaimedError, match=r"evaluate\.output_dir"), second.claimed():
            pass
        first.finalize([1])
    with second.claimed():
        second.add(record(2))
        second.finalize([1, 2])
    assert read_records(tmp_path / EPISODES_FILE) == [record(1), record(2)]


def test_records_of_earlier_versions_are_translated(tmp_path: Path) -> None:
    old = asdict(record(1))
    old["reward_sum"] = old.pop("episode_return")
    adapter = {"world": "imf_ray.sim.aloha:AlohaWorld", "stages": [1, 2], "qpos": ["."]}
    old["settings"] = {"ema": True, "success_rule": "reached", "task": {"adapter": adapter}}
    (tmp_path / EPISODES_FILE).write_text(f"{json.dumps(old)}\n")
    (translated,) = read_records(tmp_path / EPISODES_FILE)
    assert translated.episode_return == 10.0
    new_adapter = translated.settings["task"]["adapter"]
    assert new_adapter.keys() == {"env_class", "stage_thresholds", "qpos"}
    assert new_adapter["env_class"].endswith(":AlohaEnv")
    assert translated.settings["use_ema_weights"] is True
    assert translated.settings["success_description"] == "reached"


RESULTS = sorted((REPO_ROOT / "docs" / "results").rglob("*.jsonl.gz"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_published_records_can_be_read(path: Path) -> None:
    with gzip.open(path, "rt") as file:
        records = [parse_record(line) for line in file]
    assert records and summarize(records).failed == 0
    assert all("success_description" in record.settings for record in records)
    assert all("privileged_pose_objects" in record.settings for record in records)


def test_summarize() -> None:
    summary = summarize([record(seed, success=seed < 45) for seed in range(50)])
    assert summary.success_rate == 0.9 and summary.failed == 0
    assert (round(summary.success_ci_low, 2), round(summary.success_ci_high, 2)) == (0.79, 0.96)
    assert summary.stage_shares == {1: 1.0, 2: 1.0, 3: 0.9, 4: 0.9}
    assert stage_shares(summary.metrics()) == summary.stage_shares
    assert describe_success(summary.metrics()) == "0.90 [0.79, 0.96]"
    failed = replace(record(50, success=False), error="lost")
    assert summarize([failed]).failed == 1 and "1 ended in an error" in str(summarize([failed]))
    with pytest.raises(ValueError, match="nothing to summarize"):
        summarize([])
