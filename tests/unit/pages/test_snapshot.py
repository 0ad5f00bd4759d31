"""Folders of sweeps and runs, read into snapshots, first as a whole and then what changed."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from imf_ray.errors import UserError
from imf_ray.launches import recorded_launch
from imf_ray.pages import run_log
from imf_ray.pages.curve_log import MAX_POINTS
from imf_ray.pages.model import Row, Snapshot, State, Success
from imf_ray.pages.snapshot import SnapshotReader
from imf_ray.sweep.results import rank
from imf_ray.sweep.trial_record import FAILED, FINISHED, STOPPED, TrialDir
from testing_support.generated_runs import (
    LINE_S,
    LOG_FREQ,
    MIXED,
    NUM_EPISODES,
    PENDING,
    RUNNING,
    GeneratedRun,
    generate_sweep,
)

SECRET = "s3cr3t-value"
NUM_LINES, MAX_STEPS = 120, 12_000


def write_sweep(
    folder: Path, num_trials: int, statuses: Sequence[str] = MIXED, video: bytes | None = None
) -> Path:
    """Write a sweep over width and depth, and return its folder."""
    generate_sweep(folder, num_trials, NUM_LINES, statuses, MAX_STEPS, video=video)
    return folder


def write_run(folder: Path, max_steps: int = MAX_STEPS, ended_at: float | None = None) -> Path:
    """Write a run that has made half of its updates, and return its folder."""
    num_lines = NUM_LINES // 2
    now = time.time() if ended_at is None else ended_at
    started_at = now - (num_lines + 4) * LINE_S
    GeneratedRun(folder, started_at=started_at, max_steps=max_steps).add_lines(num_lines)
    return folder


def append_lines(run: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Add lines to the log of a run."""
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in lines)


def read(folder: Path) -> Snapshot:
    """Read a folder once."""
    return SnapshotReader(folder).read()


def by_number(snapshot: Snapshot) -> list[Row]:
    """Return the trials in the order of their numbers."""
    return sorted(snapshot.rows, key=lambda row: row.name)


def edit_json(file: Path, **values: Any) -> None:
    """Change some entries of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_sweep_with_trials_in_every_state(tmp_path: Path) -> None:
    statuses = (FINISHED, RUNNING, PENDING, FAILED, STOPPED, FINISHED)
    folder = write_sweep(tmp_path / "sweep", 6, statuses=statuses, video=b"video")
    snapshot = read(folder)
    assert (snapshot.kind, snapshot.title, snapshot.state) == ("sweep", "sweep", State.RUNNING)
    assert snapshot.path == str(folder) and snapshot.is_active
    assert [row.state for row in by_number(snapshot)] == [State(status) for status in statuses]
    assert snapshot.varied == {"agent.head.n_emb": "n_emb", "agent.head.n_layer": "n_layer"}
    assert snapshot.is_grid and not snapshot.notes
    assert [row.name for row in snapshot.baselines] == ["expert", "untrained"]
    assert len(snapshot.stage_names) == 4 and "lifts" in snapshot.stage_names[1]
    assert snapshot.data is not None
    assert (snapshot.data.num_train, snapshot.data.num_val) == (45, 5)
    assert snapshot.data.num_steps == 45 * 400
    assert snapshot.options["train.max_steps"] == MAX_STEPS
    assert not snapshot.options.keys() & {*snapshot.varied, "run_name"}

    finished, running, pending, failed, stopped, _ = by_number(snapshot)
    assert finished.params == {"agent.head.n_emb": 32, "agent.head.n_layer": 2}
    assert finished.label == "n_emb=32 n_layer=2"
    assert isinstance(finished.success, Success) and finished.success.episodes == NUM_EPISODES
    assert len(finished.stages) == 4 and finished.stages[-1] == finished.success.rate
    assert finished.max_steps == finished.saved_step == MAX_STEPS
    assert (
        finished.wall_s == pytest.approx((NUM_LINES + 6) * LINE_S) and finished.time_left_s is None
    )
    assert [process.rank for process in finished.processes] == [None, 0]
    assert finished.media[0].path == f"trials/{finished.name}/videos/checkpoint_00012000.mp4"
    assert finished.link == f"trials/{finished.name}/"
    curves = {curve.metric: curve for curve in finished.curves}
    assert curves.keys() == {"rollout/success_rate", "action_error", "loss", "lr", "samples_per_s"}
    assert list(curves["rollout/success_rate"].steps) == [2000, 4000, 6000, 8000, 10_000, 12_000]
    success = curves["rollout/success_rate"]
    assert all(
        low <= v <= high
        for low, v, high in zip(success.lows, success.values, success.highs, strict=True)
    )
    assert running.time_left_s is not None and running.step is not None
    lines_left = (MAX_STEPS - running.step) / LOG_FREQ
    assert running.time_left_s == pytest.approx(lines_left * LINE_S, rel=0.1)  # with validations
    assert running.last_entry_age_s is not None and 0 <= running.last_entry_age_s < 60
    assert pending.step is None and not pending.curves
    assert snapshot.steps_left == MAX_STEPS - running.step + MAX_STEPS
    assert snapshot.time_left_s == pytest.approx(
        snapshot.steps_left * running.time_left_s / (MAX_STEPS - running.step)
    )
    assert failed.error is not None and "diverged" in failed.error and failed.checkpoint is None
    assert stopped.checkpoint is not None and Path(stopped.checkpoint).is_dir()


def test_trials_are_ranked_like_the_results_of_the_sweep(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", 16)
    records = [TrialDir(path).read_record() for path in sorted((folder / "trials").iterdir())]
    ranked = rank([record for record in records if record is not None])
    assert [row.name for row in read(folder).rows] == [record.name for record in ranked]
    best, second = ranked[:2]
    commands = read(folder).commands
    assert f"checkpoint={best.best_checkpoint} " in str(commands)
    assert f"imf-ray compare {best.best_checkpoint} {second.best_checkpoint} " in str(commands)
    assert "imf-ray tune resume=auto run_name=sweep" in str(commands)


def test_only_what_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_sweep(tmp_path / "sweep", 6, statuses=(RUNNING, FINISHED))
    reader = SnapshotReader(folder)
    before = reader.read()
    reads: list[tuple[str, int]] = []

    def read_json_lines(path: Path, parse: Any, offset: int, *others: Any) -> Any:
        reads.append((path.parent.name, offset))
        return original(path, parse, offset, *others)

    original = run_log.read_json_lines
    monkeypatch.setattr(run_log, "read_json_lines", read_json_lines)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read again"))
    after = reader.read()
    assert not reads
    ages = {"last_entry_age_s": None}
    assert [dataclasses.replace(row, **ages) for row in after.rows] == [
        dataclasses.replace(row, **ages) for row in before.rows
    ]
    run = folder / "trials" / by_number(before)[0].name
    size = (run / "metrics.jsonl").stat().st_size
    append_lines(run, [{"step": 11_900, "time": time.time(), "loss": 0.125}])
    changed = by_number(reader.read())[0]
    assert reads == [(run.name, size)]
    loss = next(curve for curve in changed.curves if curve.metric == "loss")
    assert changed.step == 11_900 and (loss.steps[-1], loss.values[-1]) == (11_900, 0.125)


def test_new_trials_results_and_checkpoints_appear(tmp_path: Path) -> None:
    complete = write_sweep(tmp_path / "complete", 2, statuses=(FINISHED,))
    folder = write_sweep(tmp_path / "sweep", 2, statuses=(RUNNING, PENDING))
    reader = SnapshotReader(folder)
    assert [row.state for row in by_number(reader.read())] == [State.RUNNING, State.PENDING]
    for trial in sorted((complete / "trials").iterdir()):
        shutil.rmtree(folder / "trials" / trial.name)
        shutil.copytree(trial, folder / "trials" / trial.name)
    rows = by_number(reader.read())
    assert [row.state for row in rows] == [State.FINISHED, State.FINISHED]
    assert str(rows[0].checkpoint).startswith(str(folder / "trials" / rows[0].name))
    shutil.rmtree(folder / "trials")
    assert {row.state for row in reader.read().rows} == {State.PENDING}
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="does not exist"):
        reader.read()
    shutil.copytree(complete, folder)
    assert [row.state for row in reader.read().rows] == [State.FINISHED, State.FINISHED]


def test_a_log_with_a_restart_and_damaged_lines(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    reader = SnapshotReader(tmp_path / "run")
    before = reader.read().rows[0]
    assert before.step is not None and before.step > 1000
    now = time.time()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 300\n["not", "metrics"]\n')
    append_lines(run, [{"step": 300, "time": now, "restarts": 1}])
    append_lines(run, [{"step": 400, "time": now + 1, "loss": 0.5}])
    append_lines(run, [{"step": 500, "time": now + 2, "loss": 0.4}])
    (row,) = reader.read().rows
    loss = next(curve for curve in row.curves if curve.metric == "loss")
    assert list(loss.steps) == [100, 200, 300, 400, 500] and list(loss.values[-2:]) == [0.5, 0.4]
    assert (row.step, row.restarts) == (500, 1)
    assert row.time_left_s == pytest.approx((MAX_STEPS - 500) / LOG_FREQ)
    assert row.notes == ["2 damaged line(s) of metrics.jsonl were skipped."]


def test_long_curves_are_thinned(tmp_path: Path) -> None:
    run = GeneratedRun(tmp_path / "run").path
    lines = [{"step": step, "time": float(step), "loss": 1.0 / step} for step in range(1, 5000)]
    reader = SnapshotReader(run)
    for start in range(0, len(lines), 700):  # a growing log
        append_lines(run, lines[start : start + 700])
        (row,) = reader.read().rows
        loss = next(curve for curve in row.curves if curve.metric == "loss")
        assert len(loss.steps) <= MAX_POINTS + 2 and list(loss.steps) == sorted(set(loss.steps))
        assert loss.steps[-1] == lines[: start + 700][-1]["step"]
    assert len(loss.steps) > MAX_POINTS / 2


def test_a_stalled_run_and_one_that_was_interrupted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ended_at=time.time() - 3600)
    assert read(run).state == State.STALLED
    with pytest.raises(KeyboardInterrupt), recorded_launch(run, "train", ["run_name=run"]):
        raise KeyboardInterrupt
    snapshot = read(run)
    assert snapshot.state == snapshot.rows[0].state == State.STOPPED and not snapshot.is_active
    assert snapshot.launches[0].command == "imf-ray train run_name=run"
    with pytest.raises(UserError), recorded_launch(run, "train", ["run_name=run"]):
        raise UserError("Training diverged.")
    snapshot = read(run)
    assert (snapshot.state, snapshot.rows[0].error) == (State.FAILED, "Training diverged.")
    append_lines(run, [{"step": MAX_STEPS, "time": time.time(), "loss": 0.1}])
    snapshot = read(run)
    assert (snapshot.state, snapshot.rows[0].error) == (State.FINISHED, "Training diverged.")


def test_the_state_of_a_sweep_follows_its_launches(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", 2, statuses=(FINISHED, RUNNING))
    with pytest.raises(KeyboardInterrupt), recorded_launch(folder, "tune", []):
        raise KeyboardInterrupt
    snapshot = read(folder)
    assert snapshot.state == State.STOPPED and not snapshot.is_active
    assert {row.state for row in snapshot.rows} == {State.FINISHED, State.STOPPED}
    ended = write_sweep(tmp_path / "ended", 2, statuses=(FINISHED, FAILED))
    assert read(ended).state == State.FINISHED
    with recorded_launch(ended, "tune", []):
        assert read(ended).state == State.RUNNING  # baselines and videos follow


def test_files_of_earlier_versions(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", 8, statuses=(FINISHED,))
    space = json.loads((folder / "space.json").read_text())
    old_space = {"space": space["space"], "overrides": space["overrides"], "begun": 5.0}
    (folder / "space.json").write_text(json.dumps(old_space))
    (folder / "baselines.json").rename(folder / "oracles.json")
    trial = next((folder / "trials").iterdir())
    record = json.loads((trial / "trial.json").read_text())
    metrics = record["metrics"]
    metrics["rollout/reward_sum"] = metrics.pop("rollout/return_mean")
    metrics["rollout/success_low"] = metrics.pop("rollout/success_ci_low")
    metrics["rollout/success_high"] = metrics.pop("rollout/success_ci_high")
    edit_json(trial / "trial.json", metrics=metrics)
    snapshot = read(folder)
    assert len(snapshot.rows) == 8 and len(snapshot.baselines) == 2 and not snapshot.launches
    row = next(row for row in snapshot.rows if row.name == trial.name)
    assert row.success is not None and row.reward is not None and row.params


def test_damaged_files_are_noted_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", 3, statuses=(FINISHED,))
    first, second, _ = sorted((folder / "trials").iterdir())
    (first / "trial.json").write_text("{")
    (first / "config.yaml").write_text("train: [")
    (second / "data.json").write_text("{}")  # the first trial whose configuration is valid
    (folder / "baselines.json").write_text("[1]")
    snapshot = read(folder)
    assert len(snapshot.rows) == 3 and snapshot.data is None and not snapshot.baselines
    assert any("baselines.json is damaged" in note for note in snapshot.notes)
    damaged = next(row for row in snapshot.rows if row.name == first.name)
    assert any("trial.json is damaged" in note for note in damaged.notes)
    assert damaged.success is not None  # from its log
    (folder / "space.json").write_text("null")
    snapshot = read(folder)
    assert any("space.json is damaged" in note for note in snapshot.notes)
    assert len(snapshot.rows) == 3 and not snapshot.varied


def test_a_trial_has_a_page_of_its_own(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", 2, statuses=(FINISHED,), video=b"video")
    trial = sorted((folder / "trials").iterdir())[1]
    grid = trial / "evaluations/checkpoint_00012000-0a1b2c3d/grid.mp4"
    grid.parent.mkdir(parents=True)
    grid.write_bytes(b"grid")
    (trial / "depth_weights.png").write_bytes(b"image")
    snapshot = read(trial)
    assert (snapshot.kind, snapshot.title) == ("run", trial.name)
    assert snapshot.media[0].caption == "Validation at step 12000"
    assert [media.mime_type for media in snapshot.media[-2:]] == ["video/mp4", "image/png"]
    row = next(row for row in read(folder).rows if row.name == trial.name)
    assert [Path(media.path).name for media in row.media] == ["checkpoint_00012000.mp4", "grid.mp4"]
    assert len(snapshot.media) == 8 and snapshot.media[0].path == "videos/checkpoint_00012000.mp4"
    assert snapshot.options["agent.head.n_layer"] == 4
    assert "agent.head.n_layer=4" in str(snapshot.commands)


def test_videos_are_embedded_up_to_two_limits(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", 3, statuses=(FINISHED,), video=b"12345")
    (folder / "best.mp4").write_bytes(b"123")
    reader = SnapshotReader(folder, links=False, max_file_bytes=5, max_total_bytes=8)
    snapshot = reader.read()
    assert [media.content for media in snapshot.media] == [b"123"]
    assert [row.media[0].content for row in snapshot.rows] == [b"12345", None, None]
    assert snapshot.rows[1].media[0].num_bytes == 5 and snapshot.rows[0].link is None
    again = reader.read()
    assert [row.media for row in again.rows] == [row.media for row in snapshot.rows]
    small = SnapshotReader(folder, max_file_bytes=4, max_total_bytes=100).read()
    assert small.rows[0].media[0].content is None and small.media[0].content == b"123"


def test_a_folder_of_runs_and_sweeps(tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    write_sweep(storage / "sweep", 4, statuses=(FINISHED, FAILED, RUNNING, FINISHED))
    write_run(storage / "a run")
    write_run(storage / "longer", 24_000)
    (storage / "comparisons").mkdir()
    snapshot = read(storage)
    assert (snapshot.kind, snapshot.state) == ("storage", State.RUNNING)
    rows = {row.name: row for row in snapshot.rows}
    assert rows.keys() == {"sweep", "a run", "longer"}
    assert dict(snapshot.varied) == {"train.max_steps": "max_steps"}
    assert rows["longer"].params == {"train.max_steps": 24_000}
    assert rows["a run"].link == "a%20run/"
    sweep = rows["sweep"]
    assert sweep.max_steps == 4 * MAX_STEPS and sweep.success is not None
    assert sweep.error == "1 of 4 trials failed."
    assert sweep.time_left_s is not None
    assert sweep.notes[0] == "Sweep: 3 of 4 trials have ended."


def test_a_folder_without_a_page_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    for folder in (tmp_path, tmp_path / "missing", tmp_path / "notes.txt"):
        with pytest.raises(UserError):
            SnapshotReader(folder).read()


def test_secrets_do_not_reach_a_page(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", 2, statuses=(FINISHED, FAILED))
    for trial in (folder / "trials").iterdir():
        config = (trial / "config.yaml").read_text()
        url = f"https://user:{SECRET}@host/demos?token={SECRET}"
        config = config.replace("dataset_dir: data/sim_transfer", f"dataset_dir: {url}")
        (trial / "config.yaml").write_text(config)
        assert SECRET in config
        edit_json(
            trial / "trial.json",
            error=f"HF_TOKEN={SECRET} was refused",
            swanlab_run=f"https://host/run?key={SECRET}",
            best_checkpoint=f"s3://key:{SECRET}@bucket/checkpoint_00000100",
        )
    space = json.loads((folder / "space.json").read_text())
    edit_json(
        folder / "space.json",
        overrides=[*space["overrides"], f"data.dataset_dir=s3://a:{SECRET}@b"],
    )
    for path in (folder, tmp_path, next((folder / "trials").iterdir())):
        assert SECRET not in str(read(path))


def test_a_configuration_of_another_version_is_shown_as_it_is(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text(
        "agent: {name: old}\ntrain: {max_steps: 500, bach_size: 4, autocast: none}\n"
    )
    snapshot = read(run)
    (row,) = snapshot.rows
    assert row.max_steps == 500 and "bach_size" in row.notes[0]
    assert snapshot.options["train.bach_size"] == 4
    assert snapshot.options["train.encoder_precision"] == "fp32"  # its current name
    assert "Train it again" not in snapshot.commands and snapshot.data is not None
