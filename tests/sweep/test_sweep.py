"""Search spaces, a real small sweep, and its table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from rich.console import Console

from imf_ray.errors import UserError
from imf_ray.resources import ClusterSize
from imf_ray.sweep.runner import judge_expert, plan_sweep, prepare_sweep, run_sweep
from imf_ray.sweep.search_space import SearchSpace, load_search_space, short_names, trial_name
from imf_ray.sweep.table import make_table, rank, read_sweep, write_files
from imf_ray.sweep.trial import TrialRecord
from tests.conftest import LOGICAL_CPUS, LOGICAL_GPUS, TINY_AGENT, TINY_TRAINING

SIZE = ClusterSize(((float(LOGICAL_CPUS), float(LOGICAL_GPUS)),))


def test_the_grid_of_the_study() -> None:
    space = load_search_space("n_emb_n_layer")
    combinations = space.combinations()
    assert [tuple(c.values()) for c in combinations] == [(256, 12), (256, 16), (384, 12), (384, 16)]
    for combination in combinations:
        config = space.config([], combination)
        assert config.agent.name == "resnet_imf_attnres_multitoken"
        assert config.agent.head.n_emb == combination["agent.head.n_emb"]
        assert config.agent.head.n_layer == combination["agent.head.n_layer"]
        assert config.agent.pred_horizon == 16 and config.agent.num_action_steps == 8
        assert config.train.rollout_num_episodes == 10
        assert config.agent.vision_backbone.stage_widths == [64, 128, 256, 512]
        assert config.agent.vision_backbone.use_separate_rgb_encoder_per_camera


def test_the_quickstart_keeps_three_cameras_and_a_residual_trunk() -> None:
    space = load_search_space("quickstart")
    assert len(space.combinations()) == 4
    first = space.combinations()[0]
    config = space.config([], first)
    assert config.agent.camera_names == ["r_vis", "top", "front"]
    assert config.train.rollout_num_episodes >= 5
    assert space.config(["train.max_steps=7"], first).train.max_steps == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("grid: {}", "not a search space"),
        ("grid: {agent.head.n_embb: [1]}", "varies agent.head.n_embb"),
        ("grid: {agent.head.n_emb: 3}", "needs a list"),
        ("space: {agent.head.n_emb: [3]}", "not a search space"),
    ],
)
def test_bad_search_spaces(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_search_space(str(path))


def test_unknown_search_space_and_varied_option() -> None:
    with pytest.raises(UserError, match=r"unknown. Known: .*quickstart"):
        load_search_space("quick")
    with pytest.raises(UserError, match="is varied by the search space"):
        load_search_space("quickstart").config(["agent.head.n_emb=3"], {})


def test_names() -> None:
    assert short_names(["agent.head.n_emb", "train.lr"]) == {
        "agent.head.n_emb": "n_emb",
        "train.lr": "lr",
    }
    assert trial_name(3, {"agent.head.n_emb": 64}) == "00003-n_emb_64"


def test_ranking_is_by_success_then_action_error() -> None:
    def record(name: str, success: float | None, error: float) -> TrialRecord:
        metrics = {"step": 1, "action_error": error}
        if success is not None:
            metrics["rollout/success_rate"] = success
        return TrialRecord(name, {}, "finished", metrics, "c", "d", 1, "h", [], None)

    ranked = rank([record("a", 0.1, 0.2), record("b", 0.5, 0.9), record("c", 0.1, 0.1)])
    assert [r.name for r in ranked] == ["b", "c", "a"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_trains_judges_and_records(demonstrations: Path, tmp_path: Path) -> None:
    grid = {"agent.head.n_emb": [16, 32], "agent.head.n_layer": [1]}
    fixed = [option for option in TINY_AGENT if not option.startswith("agent.head.n_")]
    overrides = [
        "agent=resnet_imf_attnres_multitoken",
        *fixed,
        "agent.head.n_head=2",
        "agent.head.n_kv_head=1",
        *TINY_TRAINING,
        "train.max_steps=2",
        "train.use_swanlab=true",
        "train.swanlab_mode=offline",
        f"data.dataset_dir={demonstrations}",
    ]
    space = SearchSpace("tiny", {}, grid)
    sweep = prepare_sweep(space, overrides, tmp_path)
    resources, slots = plan_sweep(sweep, SIZE)
    assert slots == 2
    expert = judge_expert(sweep, resources)
    records = run_sweep(sweep, resources, slots)
    assert [record.status for record in records] == ["finished", "finished"]
    for record in records:
        assert Path(str(record.best_checkpoint)).is_dir()
        assert record.metrics["rollout/episodes"] == 2
        (worker,) = record.workers
        assert worker["pid"] > 0 and worker["host"] and worker["gpu_ids"] == []
        assert Path(worker["log_path"]).exists()
        assert record.swanlab_run and Path(record.swanlab_run).is_dir()
    files = write_files(tmp_path, records, expert, space.name)
    assert [path.name for path in files] == ["sweep.json", "sweep.csv", "grid.png"]
    assert all(path.stat().st_size > 0 for path in files)
    again, expert_metrics = read_sweep(tmp_path)
    assert again == rank(records) and expert_metrics == expert.metrics()
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert len(rows) == 2 and json.loads(rows[0]["workers"])[0]["pid"] > 0
    console = Console(width=160, record=True)
    console.print(make_table(records, expert.metrics()))
    text = console.export_text()
    assert text.index("expert") < text.index("00000")
