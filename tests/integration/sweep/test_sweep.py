"""Search spaces, a real small sweep, and its table."""

from __future__ import annotations

import csv
import dataclasses
import json
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos_sweep import is_alive
from imf_ray.errors import UserError
from imf_ray.sweep.results import rank
from imf_ray.sweep.schedulers import SCHEDULERS, make_scheduler
from imf_ray.sweep.search_space import load_search_space, short_names, trial_name
from imf_ray.sweep.status import find_runs, read_all
from imf_ray.sweep.trial import TrialRecord, _ForwardReports
from imf_ray.training.checkpoint import newest_checkpoint
from imf_ray.training.loop import EARLIER_VALIDATIONS_KEY
from imf_ray.training.tracking import METRICS_FILE, read_metrics, read_workers
from tests.helpers import REPO_ROOT
from tests.helpers.commands import begin_command, command_environment, run_command
from tests.helpers.configs import COMMAND_LIMIT_S, TINY_AGENT, TINY_TRAINING


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
        ("sample: {train.lr: {logunifrom: [1, 2]}}", "needs one of choice, uniform"),
        ("sample: {train.lr: {loguniform: [-1, 2]}}", "cannot be drawn"),
        ("{grid: {train.lr: [1]}, sample: {train.lr: {choice: [1]}}}", "varies train.lr twice"),
        ("{grid: {train.lr: [1]}, num_samples: 2}", "repeats the grid"),
        ("{sample: {train.lr: {choice: [1]}}, num_samples: 0}", "must be at least 1"),
        ("{grid: {train.lr: [1]}, scheduler: {pbt: {}}}", "one of asha, median_stopping"),
        ("{grid: {train.lr: [1]}, scheduler: {asha: {metric: loss}}}", "options of asha are"),
        ("{grid: {train.lr: [1]}, scheduler: {asha: {brackets: 2}}}", "options of asha are"),
    ],
)
def test_bad_search_spaces(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_search_space(str(path))


def test_random_search_draws_the_same_trials_each_time() -> None:
    space = load_search_space("random")
    trials = space.combinations()
    assert len(trials) == 12 and trials == space.combinations()
    assert len({trial["train.lr"] for trial in trials}) == 12
    assert all(1e-4 <= trial["train.lr"] <= 1e-2 for trial in trials)
    assert {trial["train.batch_size"] for trial in trials} <= {32, 64, 128}
    for trial in trials:
        assert space.config([], trial).train.lr == trial["train.lr"]
    other = dataclasses.replace(space, seed=1, grid={"train.seed": [1, 2]}, num_samples=2)
    assert [trial["train.seed"] for trial in other.combinations()] == [1, 1, 2, 2]
    assert other.combinations()[0]["train.lr"] != trials[0]["train.lr"]


@pytest.mark.parametrize("name", ["asha", "median_stopping"])
def test_the_spaces_with_a_scheduler(name: str) -> None:
    space = load_search_space(name)
    config = space.config([], space.combinations()[0])
    assert config.train.rollout_validate_on_checkpoint
    scheduler = make_scheduler(space.scheduler, 6000, {})
    assert type(scheduler._inner) is SCHEDULERS[name]
    assert scheduler._inner.metric == "rollout/success_rate"
    assert make_scheduler({}, 6000, {}) is None
    if name == "asha":
        with pytest.raises(UserError, match=r"asha with .* and 10 training steps is not possible"):
            make_scheduler(space.scheduler, 10, {})


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


def logs_of(sweep_dir: Path) -> list[list[dict[str, Any]]]:
    """The metrics of each trial that has any."""
    return [read_metrics(path) for path in sorted(sweep_dir.glob(f"trials/*/{METRICS_FILE}"))]


def wait_for_steps(steps: Sequence[int], sweep_dir: Path, command: subprocess.Popen[str]) -> None:
    """Wait until each trial has made that many updates."""
    made: list[int] = []
    while len(made) < len(steps) or any(m < s for m, s in zip(made, steps, strict=True)):
        assert command.poll() is None
        time.sleep(0.1)
        made = [max((e["step"] for e in log), default=0) for log in logs_of(sweep_dir)]


def newest_steps(sweep_dir: Path) -> list[int]:
    """Of each trial, the updates that are in its newest checkpoint."""
    found = [newest_checkpoint(run) for run in find_runs(sweep_dir)]
    return [0 if checkpoint is None else checkpoint.step for checkpoint in found]


SPACE = """
fixed:
  agent: resnet_imf_attnres_multitoken
  agent.head.n_head: 2
  train.max_steps: 200
grid:
  agent.head.n_emb: [16, 32]
  agent.head.n_layer: [1]
"""


def test_a_sweep_stops_goes_on_trains_judges_and_records(
    demonstrations: Path, tmp_path: Path
) -> None:
    """The command as a user types it, Ctrl-C, a driver that is killed, and what tells of it all."""
    (tmp_path / "tiny.yaml").write_text(SPACE)
    varied = ("agent.head.n_emb", "agent.head.n_layer", "agent.head.n_head", "train.max_steps")
    options = [o for o in (*TINY_AGENT, *TINY_TRAINING) if not o.startswith(varied)]
    options += [
        "search_space=tiny.yaml",
        f"data.dataset_dir={demonstrations}",
        "cluster.num_cpus=4",
        "train.use_swanlab=true",
        "train.swanlab_mode=offline",
        "task.max_episode_steps=60",
        "run_name=sweep",
        "train.save_freq=100",  # every checkpoint is judged, which takes longer than training
    ]
    folder = tmp_path / "runs/sweep"
    begun = begin_command("tune", *options, cwd=tmp_path)
    wait_for_steps([5, 5], folder, begun)
    assert [run.state for run in read_all(folder)] == ["running", "running"]
    begun.send_signal(signal.SIGINT)
    _, errors = begun.communicate(timeout=COMMAND_LIMIT_S)
    assert begun.returncode == 130, errors
    assert "python -m imf_ray.tune resume=auto run_name=sweep" in errors
    saved = newest_steps(folder)
    made = [{line["step"] for line in log if "loss" in line} for log in logs_of(folder)]
    assert [max(steps, default=0) for steps in made] == saved  # nothing is lost by Ctrl-C

    killed = begin_command("tune", "resume=auto", cwd=tmp_path)
    wait_for_steps([steps + 1 for steps in saved], folder, killed)
    killed.kill()
    killed.communicate(timeout=COMMAND_LIMIT_S)
    workers = [worker["pid"] for run in find_runs(folder) for worker in read_workers(run)]
    while any(map(is_alive, workers)):
        time.sleep(0.1)
    starts = [saved, newest_steps(folder)]

    done = run_command("tune", "resume=auto", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Going on with" in done.stdout
    assert "2 trials, 2 at a time" in done.stdout and "SwanLab: offline" in done.stdout
    for trial, log in enumerate(logs_of(folder)):  # no update of a checkpoint was made twice
        assert {line["step"] for line in log if "loss" in line} == set(range(1, 201))
        found = [line["step"] for line in log if "restarts" in line]
        assert found == [0, *(steps[trial] for steps in starts)]
    content = json.loads((folder / "sweep.json").read_text())
    for baseline in ("expert", "untrained"):
        assert content["baselines"][baseline]["rollout/episodes"] == 2
    for trial in content["trials"]:
        assert trial["status"] == "finished" and trial["driver_pid"] > 0 and trial["driver_host"]
        assert Path(trial["best_checkpoint"]).is_dir()
        assert trial["metrics"]["rollout/episodes"] == 2 and trial["metrics"]["action_error"] > 0
        (worker,) = trial["workers"]
        assert worker["pid"] > 0 and worker["host"] and worker["gpu_ids"] == []
        assert Path(worker["log_path"]).exists()
        assert Path(trial["swanlab_run"]).is_dir()
    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    assert len(rows) == 2 and json.loads(rows[0]["workers"])[0]["pid"] > 0
    for name in ("grid.png", "expert.mp4", "best.mp4"):
        assert (folder / name).stat().st_size > 1000 and str(folder / name) in done.stdout
    rows_of_table = done.stdout[done.stdout.index("Ranked by") :]
    assert rows_of_table.index("expert") < rows_of_table.index("00000 ")
    assert rows_of_table.index("00001 ") < rows_of_table.index("untrained")

    table = run_command("report", "run_name=sweep", cwd=tmp_path)
    assert table.returncode == 0 and "expert" in table.stdout and "00001 " in table.stdout

    shown = run_command("status", "runs/sweep", cwd=tmp_path)
    assert shown.returncode == 0 and shown.stdout.count("finished") == 2
    one, other = find_runs(folder)
    (one / "trial.json").unlink()
    log = one / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 1, "lo')  # as a worker that is writing leaves it
    (other / "trial.json").unlink()
    (other / "metrics.jsonl").unlink()
    trained, waiting = read_all(folder)
    assert trained.state == "trained" and trained.step == trained.checkpoint == trained.max_steps
    assert waiting.state == "waiting" and waiting.step == 0 and waiting.age_s is None
    with pytest.raises(UserError, match="neither a run"):
        find_runs(tmp_path)

    changed = run_command("tune", *options, "train.lr=1e-2", cwd=tmp_path)
    assert changed.returncode == 2 and "started with other settings" in changed.stderr


FAILING_SPACE = """
fixed:
  agent: resnet_imf_attnres_multitoken
  agent.head.n_head: 2
grid:
  train.lr: [1.0e-3, 1.0e+30]
"""


def test_a_trial_that_fails_is_told_of_and_tried_again(
    demonstrations: Path, tmp_path: Path
) -> None:
    (tmp_path / "failing.yaml").write_text(FAILING_SPACE)
    options = [o for o in (*TINY_AGENT, *TINY_TRAINING) if not o.startswith("agent.head.n_head")]
    options += ["search_space=failing.yaml", f"data.dataset_dir={demonstrations}"]
    options += ["task.max_episode_steps=60", "run_name=sweep", "cluster.num_cpus=4"]
    folder = tmp_path / "runs/sweep"
    for attempt, asked in enumerate((options, ["resume=auto"]), start=1):
        done = run_command("tune", *asked, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        good, bad = json.loads((folder / "sweep.json").read_text())["trials"]
        assert (good["status"], bad["status"]) == ("finished", "failed")
        assert "The gradient's norm is" in bad["error"] and bad["error"] in done.stdout
        assert "1 of 2 trials failed" in done.stderr and "resume=auto" in done.stderr
        starts = [sum("restarts" in line for line in log) for log in logs_of(folder)]
        assert starts == [1, attempt]  # what is no longer finite is not tried again
    assert bad["error"] in run_command("status", str(folder), cwd=tmp_path).stdout


@pytest.mark.slow
def test_a_sweep_makes_an_autoscaling_cluster_grow(demonstrations: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.helpers.autoscaling_cluster",
            str(tmp_path),
            str(demonstrations),
        ],
        cwd=REPO_ROOT,
        env=command_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_LIMIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 trials, 2 at a time" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == [1, 2]
    states = [run.state for run in read_all(tmp_path / "runs/sweep")]
    assert states == ["finished", "finished"]


def test_tune_is_told_of_every_validation_in_its_order() -> None:
    """Two may have ended since the last checkpoint; a scheduler compares trials at each step."""
    told: queue.Queue[dict[str, object]] = queue.Queue()
    early, late = {"validated_step": 2}, {"validated_step": 4, "step": 6}
    _ForwardReports(told).after_report(
        None, [{**late, EARLIER_VALIDATIONS_KEY: [early]}, {"step": 6}], None
    )
    assert [told.get(), told.get()] == [early, late] and told.empty()
