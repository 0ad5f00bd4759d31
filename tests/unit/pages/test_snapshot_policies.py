"""Snapshots of comparisons and evaluations."""

from __future__ import annotations

import dataclasses
import json
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from imf_ray.config import load_config, to_yaml
from imf_ray.evaluation.comparison import compare, write_comparison
from imf_ray.launches import recorded_launch
from imf_ray.pages.model import State
from imf_ray.pages.snapshot import SnapshotReader
from imf_ray.rollout.record_store import RecordStore
from imf_ray.rollout.records import EpisodeRecord
from imf_ray.sim.tasks import TASKS

SETTINGS = {"num_action_steps": 8, "task": {"env_id": "imf_ray/SimTransfer-v0"}}
SECRET = "s3cr3t-value"


def records(policy: str, stages: Sequence[int], error: str | None = None) -> list[EpisodeRecord]:
    """Return one episode for each of the highest stages reached; 4 is success."""
    return [
        EpisodeRecord(
            seed=500_000 + number,
            success=stage == 4,
            max_stage=stage,
            num_stages=4,
            episode_return=100.0 * stage,
            steps=400,
            initial_poses={"cube": [0.0] * 7},
            policy=policy,
            settings=SETTINGS,
            error=error if stage == 0 else None,
        )
        for number, stage in enumerate(stages)
    ]


def write_checkpoint(run: Path, *options: str) -> tuple[str, str]:
    """Write the configuration of a checkpoint; return its name and the folder of its records."""
    checkpoint = run / "checkpoint_00000100"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.yaml").write_text(to_yaml(load_config(options)))
    evaluation = run / "evaluations" / "checkpoint_00000100-0a1b2c3d"
    evaluation.mkdir(parents=True)
    return f"{run.name}/checkpoint_00000100", str(evaluation)


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """Write a comparison of two checkpoints, with the expert as a baseline."""
    small, small_records = write_checkpoint(
        tmp_path / "small", "agent.head.n_emb=64", "train.lr=1e-3"
    )
    large, large_records = write_checkpoint(
        tmp_path / "large", "agent.head.n_emb=128", "train.lr=1e-3"
    )
    by_policy = {
        small: records("a", [0, 1, 2, 4, 0, 1, 2, 3]),
        large: records("b", [4, 4, 4, 4, 4, 4, 4, 2]),
    }
    folder = tmp_path / "comparison"
    write_comparison(
        folder,
        {**by_policy, "expert": records("expert", [4] * 8)},
        compare(by_policy),
        {
            small: small_records,
            large: large_records,
            "expert": str(tmp_path / "evaluations/expert-1"),
        },
    )
    (Path(large_records) / "grid.mp4").write_bytes(b"video")
    return folder


def test_a_comparison(comparison: Path) -> None:
    snapshot = SnapshotReader(comparison).read()
    assert (snapshot.kind, snapshot.state) == ("comparison", State.FINISHED)
    best, other = snapshot.rows
    assert (best.name, other.name) == ("large/checkpoint_00000100", "small/checkpoint_00000100")
    assert best.success is not None and best.success.rate == 7 / 8 and best.success.episodes == 8
    assert best.stages == [1.0, 1.0, 7 / 8, 7 / 8] and best.reward == pytest.approx(375.0)
    assert [row.name for row in snapshot.baselines] == ["expert"]
    assert dict(snapshot.varied) == {"agent.head.n_emb": "n_emb"}
    assert (best.params, other.params) == ({"agent.head.n_emb": 128}, {"agent.head.n_emb": 64})
    assert snapshot.options["train.lr"] == 1e-3 and len(snapshot.stage_names) == 4
    (pair,) = snapshot.pairs
    assert {pair.a, pair.b} == {best.name, other.name} and pair.only_b == 6 and pair.only_a == 0
    assert 0 < pair.p_value < 0.05 and pair.low < pair.difference < pair.high < 0
    checkpoint = str(comparison.parent / "large/checkpoint_00000100")
    assert best.checkpoint == checkpoint
    assert f"imf-ray compare {checkpoint} " in str(snapshot.commands)
    assert [media.path for media in snapshot.media] == [
        "../large/evaluations/checkpoint_00000100-0a1b2c3d/grid.mp4"
    ]


def test_a_comparison_whose_checkpoints_are_gone_or_elsewhere(comparison: Path) -> None:
    content = json.loads((comparison / "comparison.json").read_text())
    for values in content["policies"].values():
        values["records"] = f"s3://key:{SECRET}@bucket/runs/evaluations/{values['policy']}"
    (comparison / "comparison.json").write_text(json.dumps(content))
    snapshot = SnapshotReader(comparison).read()
    assert len(snapshot.rows) == 2 and not snapshot.varied and not snapshot.options
    assert SECRET not in str(snapshot)


def test_a_damaged_comparison(comparison: Path) -> None:
    reader = SnapshotReader(comparison)
    assert reader.read().rows
    (comparison / "comparison.json").write_text('{"policies": {"a": []}}')
    snapshot = reader.read()
    assert not snapshot.rows and "comparison.json is damaged" in snapshot.notes[0]


def test_an_evaluation_while_it_runs_and_at_its_end(tmp_path: Path) -> None:
    store = RecordStore(tmp_path, "b", SETTINGS)
    reader = SnapshotReader(tmp_path)
    with store.claimed(), recorded_launch(tmp_path, "evaluate", ["checkpoint=expert"]):
        episodes = records("b", [4, 4, 2, 0], error=f"timeout of https://a:{SECRET}@host")
        for record in episodes:
            store.add(record)
        snapshot = reader.read()
        assert (snapshot.kind, snapshot.state) == ("evaluation", State.RUNNING)
        assert snapshot.rows[0].success is not None and snapshot.rows[0].success.episodes == 4
        store.finalize([record.seed for record in episodes], action_error=0.125)
        (tmp_path / "grid.mp4").write_bytes(b"video")
    snapshot = reader.read()
    assert snapshot.state == State.FINISHED
    (row,) = snapshot.rows
    assert row.success is not None and row.success.rate == 0.5 and row.action_error == 0.125
    assert snapshot.options["task.env_id"] == "imf_ray/SimTransfer-v0"
    assert len(snapshot.stage_names) == 4 and len(snapshot.media) == 1
    assert snapshot.notes == ["Seed 500003: timeout of https://***@host"]
    assert snapshot.launches[0].command == "imf-ray evaluate checkpoint=expert"


def test_stages_of_other_tasks(tmp_path: Path) -> None:
    def names(settings: Mapping[str, Any]) -> Sequence[str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        store = RecordStore(folder, "a", settings)
        with store.claimed():
            for record in records("a", [4, 2]):
                store.add(dataclasses.replace(record, settings=settings))
            store.finalize([500_000, 500_001])
        return SnapshotReader(folder).read().stage_names

    adapter = {"progress_signal": "reward", "stage_thresholds": [1, 2.5, 3, 4]}
    task = {"env_id": "other/Task-v0", "adapter": adapter}
    assert names({"task": task})[1] == "reward reaches 2.5"
    assert names({"task": {"env_id": "other/Task-v0"}}) == [f"stage {k}" for k in range(1, 5)]
    assert names({"task": {"env_id": "imf_ray/SimAirInsert-v0"}})[-1] == "stage 4"  # it has five


def test_registered_tasks_name_each_stage() -> None:
    for task in TASKS.values():
        if task.env is not None:
            assert len(task.stages) == pkgutil.resolve_name(task.env).num_stages
    adapter = load_config(["task=aloha_transfer_cube", "data.camera_names=[top]"]).task.adapter
    assert adapter is not None
    assert len(TASKS["gym_aloha/AlohaTransferCube-v0"].stages) == len(adapter.stage_thresholds)
