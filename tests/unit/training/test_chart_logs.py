"""Charts of a run for SwanLab and TensorBoard: names, order, values, resumed runs, messages."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upath import UPath

from imf_ray.errors import UserError
from imf_ray.files import append_line
from imf_ray.storage import local_dir
from imf_ray.sweep.sweep_dir import SweepDir
from imf_ray.training.chart_log import charts, flat_config, missing_lines
from imf_ray.training.run_dir import VALIDATIONS_FILE, RunDir
from imf_ray.training.swanlab_log import SwanLabLog
from imf_ray.training.tensorboard_log import TensorBoardLog
from imf_ray.training.tracking import Tracker, check_tracking, describe_tracking
from imf_ray.video import encode_video
from tests.helpers.trainers import config_of

VALIDATION = {
    "validated": 1.0,
    "validated_step": 4,
    "action_error": 0.4,
    "rollout/episodes": 10.0,
    "rollout/failed": 0.0,
    "rollout/success_rate": 0.0,
    "rollout/success_ci_low": 0.0,
    "rollout/success_ci_high": 0.3,
    "rollout/return_mean": 12.0,
    "rollout/stage_1": 0.5,
    "rollout/fps": 90.0,
}
TRAINING = {"epoch": 0.5, "loss": 0.7, "lr": 1e-4, "grad_norm": 0.2, "du_dt/0.0-0.2": 3.0}


def test_charts_are_in_sections_with_success_first() -> None:
    line = {"step": 4, "time": 1.0, **TRAINING, "samples_per_s": 5.0, **VALIDATION}
    assert charts(line) == {
        "1_success/rate": 0.0,  # a success rate of 0 is a result
        "1_success/rate_ci_low": 0.0,
        "1_success/rate_ci_high": 0.3,
        "2_validation/action_error": 0.4,
        "2_validation/return_mean": 12.0,
        "2_validation/stage_1": 0.5,
        "3_train/loss": 0.7,
        "3_train/lr": 1e-4,
        "4_diagnostics/grad_norm": 0.2,
        "4_diagnostics/du_dt/0.0-0.2": 3.0,
        "5_system/epoch": 0.5,
        "5_system/samples_per_s": 5.0,
        "5_system/rollout_fps": 90.0,
    }
    names = list(charts(line))
    assert names[0] == "1_success/rate"
    assert [name[0] for name in names] == sorted(name[0] for name in names)


def test_numbers_of_faults_have_charts_only_if_there_were_any() -> None:
    counts = {"restarts": 0, "invalid_checkpoints_skipped": 0, "skipped_episodes": 0}
    assert charts({"step": 0, **counts, "rollout/failed": 0.0}) == {}
    assert charts({"step": 0, **counts, "restarts": 2}) == {"5_system/restarts": 2.0}


def test_a_chart_log_lacks_later_validations_or_everything() -> None:
    lines: list[dict[str, Any]] = [{"step": step, "loss": step} for step in (1, 2, 3)]
    lines += [{"step": 3, "validated": 1}, {"step": 2, "validated": 1}]
    lines += [{"step": 2, "loss": 20}, {"step": 3, "loss": 30}]  # repeated after a failure
    assert list(missing_lines(lines, 2, is_new=False)) == [{"step": 3, "validated": 1}]
    assert list(missing_lines(lines, 2, is_new=True)) == [
        {"step": 1, "loss": 1},
        {"step": 2, "loss": 20, "validated": 1},
        {"step": 3, "validated": 1},
    ]


@pytest.fixture
def resumed_run(tmp_path: Path) -> Iterator[RunDir]:
    """A run that logs steps 2 to 6, is validated at 4, and resumes from 4 with another loss."""
    run_dir, config = RunDir(tmp_path / "run"), config_of("train.tensorboard=true")
    run_dir.path.mkdir()
    for start_step, loss in ((0, 1.0), (4, 0.5)):
        tracker = Tracker(run_dir, config, start_step, num_skipped_episodes=0)
        for step in range(start_step + 2, start_step + 8, 2):
            tracker.log(step, {"loss": loss, "lr": 1e-3})
        if start_step == 0:
            video = encode_video(np.zeros((50, 32, 48, 3), np.uint8))
            run_dir.write_validation_video(4, video)
            append_line(run_dir.path / VALIDATIONS_FILE, '{"step": 4, "rollout/success_rate": 0.5}')
            append_line(run_dir.path / VALIDATIONS_FILE, '{"step": 6, "rollout/success_rate": 0.6}')
            tracker.log_validations()
        tracker.close()
    return run_dir


def test_tensorboard_shows_each_step_once_after_a_resume(resumed_run: RunDir) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(resumed_run.tensorboard_dir)).Reload()
    scalars = {tag: log.Scalars(tag) for tag in log.Tags()["scalars"]}
    values = {tag: [(e.step, round(e.value, 6)) for e in scalars[tag]] for tag in scalars}
    # Step 6 was logged with a loss of 1 before the run resumed from step 4.
    assert values["3_train/loss"] == [(2, 1.0), (4, 1.0), (6, 0.5), (8, 0.5), (10, 0.5)]
    assert values["3_train/lr"] == [(step, 1e-3) for step in (2, 4, 6, 8, 10)]
    assert values["1_success/rate"] == [(4, 0.5), (6, 0.6)]
    assert values["5_system/restarts"] == [(4, 1.0)]
    assert set(values) == {name for line in resumed_run.read_metrics() for name in charts(line)}
    times = {line["step"]: line["time"] for line in resumed_run.read_metrics() if "loss" in line}
    assert [e.wall_time for e in scalars["3_train/loss"]] == pytest.approx(list(times.values()))
    (video,) = log.Images("2_validation/first_episode")
    assert video.step == 4 and (video.width, video.height) == (48, 32)
    assert video.encoded_image_string.startswith(b"GIF89a")


def loss_steps(run_dir: RunDir) -> list[int]:
    """Return the steps of TensorBoard's chart of the loss."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run_dir.tensorboard_dir)).Reload()
    return [event.step for event in log.Scalars("3_train/loss")]


def test_a_chart_log_that_is_enabled_later_has_all_earlier_steps(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    for start_step, enabled in ((0, False), (2, True)):
        tracker = Tracker(run_dir, config_of(f"train.tensorboard={enabled}".lower()), start_step, 0)
        for step in (start_step + 1, start_step + 2):
            tracker.log(step, {"loss": float(step)})
        tracker.close()
    assert loss_steps(run_dir) == [1, 2, 3, 4]


@pytest.mark.parametrize("varied", [[], ["train.lr", "agent.head.n_layer"]])
def test_hyperparameters_are_the_varied_options(tmp_path: Path, varied: list[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    config, run_dir = config_of("train.lr=1e-3", "train.tensorboard=true"), RunDir(tmp_path)
    Tracker(run_dir, config, 0, 0, varied).close()
    log = EventAccumulator(str(run_dir.tensorboard_dir)).Reload()
    data = log.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    options = HParamsPluginData.FromString(data).session_start_info.hparams
    assert set(options) == set(varied or flat_config(config))
    assert options["train.lr"].number_value == 1e-3


def test_training_continues_without_a_chart_log_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = RunDir(tmp_path)
    tracker = Tracker(run_dir, config_of("train.tensorboard=true"), 0, 0)

    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(TensorBoardLog, "log", fail)
    for step in (1, 2):
        tracker.log(step, {"loss": 1.0})
    tracker.close()
    assert [line["step"] for line in run_dir.read_metrics()] == [0, 1, 2]
    (record,) = caplog.records
    assert record.getMessage() == "TensorBoardLog ends until the next launch"


class FakeSwanLab:
    """Records what `swanlab.init` and the run that it returns are given."""

    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.logs: list[tuple[int, dict[str, Any]]] = []

    def init(self, **options: Any) -> "FakeSwanLab":
        self.inits.append(options)
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logs.append((step, values))

    @property
    def url(self) -> str:
        raise ValueError("offline")

    def finish(self) -> None:
        pass


@pytest.fixture
def fake_swanlab(monkeypatch: pytest.MonkeyPatch) -> FakeSwanLab:
    """Replace `swanlab.init`."""
    fake = FakeSwanLab()
    monkeypatch.setattr("swanlab.init", fake.init)
    return fake


def test_trials_are_a_group_and_launches_of_a_run_have_one_id(
    tmp_path: Path, fake_swanlab: FakeSwanLab
) -> None:
    sweep_dir = SweepDir(tmp_path / "sweep")
    config = config_of("train.use_swanlab=true", "train.swanlab_mode=offline")
    logs = [SwanLabLog(sweep_dir.trial(name), config) for name in ("a", "b", "a")]
    logs.append(SwanLabLog(RunDir(tmp_path / "run"), config))
    assert [log.is_new for log in logs] == [True, True, False, True]
    first, other, resumed, run = fake_swanlab.inits
    assert [init["name"] for init in fake_swanlab.inits] == ["a", "b", "a", "run"]
    assert [init["group"] for init in fake_swanlab.inits] == ["sweep"] * 3 + [None]
    assert first["id"] == resumed["id"] != other["id"] != run["id"]
    assert {init["project"] for init in fake_swanlab.inits} == {"imf_ray"}
    assert resumed["resume"] == "allow" and logs[0].location == first["log_dir"]
    assert first["log_dir"] == str(sweep_dir.trial("a").path / "swanlab")


def test_a_run_with_a_url_keeps_its_id_and_its_charts_on_another_machine(
    tmp_path: Path, fake_swanlab: FakeSwanLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("train.use_swanlab=true", "train.swanlab_mode=offline")
    options = config_of("train.tensorboard=true")
    name = f"{tmp_path.name}_charts"
    for step, machine in enumerate(("a", "b")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        run_dir = RunDir(local_dir(f"memory://{name}") / "run")
        assert run_dir.path.is_relative_to(tmp_path / machine)
        run_dir.download()
        SwanLabLog(run_dir, config)
        tracker = Tracker(run_dir, options, step, 0)
        tracker.log(step + 1, {"loss": 1.0})
        tracker.close()
    first, second = fake_swanlab.inits
    assert first["id"] == second["id"]
    logs = UPath(f"memory://{name}/run/tensorboard").glob("events.*")
    assert len([*logs]) == 2
    assert loss_steps(run_dir) == [1, 2]  # the second machine has no file of the first one


def test_trials_share_one_board_in_local_mode(tmp_path: Path, fake_swanlab: FakeSwanLab) -> None:
    sweep_dir = SweepDir(tmp_path / "sweep")
    config = config_of("train.use_swanlab=true", "train.swanlab_mode=local")
    for name in ("a", "b"):
        SwanLabLog(sweep_dir.trial(name), config)
    assert {init["log_dir"] for init in fake_swanlab.inits} == {str(sweep_dir.path / "swanlab")}


def test_the_config_is_flat_and_without_secrets() -> None:
    options = flat_config(config_of("train.lr=1e-3", "storage_path=s3://me:hush@bucket/runs"))
    assert options["storage_path"] == "s3://***@bucket/runs"
    assert options["train.lr"] == 1e-3 and options["agent.head.n_emb"] > 0
    assert options["cluster.address"] == "null"
    assert options["agent.camera_names"] == "[r_vis, top, front]"
    assert {type(value) for value in options.values()} == {bool, int, float, str}


def test_a_missing_package_and_an_invalid_project_are_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        check_tracking(config_of("train.tensorboard=true"))
    local = ("train.use_swanlab=true", "train.swanlab_mode=local")
    with pytest.raises(UserError, match=r"pip install 'swanlab\[dashboard\]'"):
        check_tracking(config_of(*local))
    with pytest.raises(UserError, match=r"train\.swanlab_project=a b"):
        check_tracking(config_of("train.use_swanlab=true", "train.swanlab_project=a b"))
    check_tracking(config_of("train.swanlab_project=a b"))  # SwanLab is off


def test_commands_that_show_and_upload_are_printed(tmp_path: Path) -> None:
    run_dir, sweep_dir = RunDir(tmp_path / "my run"), SweepDir(tmp_path / "sweep")
    assert describe_tracking(config_of(), run_dir) == []
    config = config_of("train.tensorboard=true")
    assert describe_tracking(config, run_dir) == [
        f"TensorBoard: tensorboard --logdir '{run_dir.path}/tensorboard'"
    ]
    assert describe_tracking(config, sweep_dir, is_sweep=True) == [
        f"TensorBoard: tensorboard --logdir {sweep_dir.path}/trials"
    ]
    config = config_of("train.use_swanlab=true", "train.swanlab_mode=local")
    (line,) = describe_tracking(config, run_dir)
    assert line == f"SwanLab: swanlab watch '{run_dir.path}/swanlab'"
    config = config_of("train.use_swanlab=true", "train.swanlab_mode=offline")
    (line,) = describe_tracking(config, sweep_dir, is_sweep=True)
    assert line.startswith("SwanLab: offline. Upload it with:\n  for run in ")


def test_the_end_of_a_run_prints_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWANLAB_API_KEY", "key")
    config, run_dir = config_of("train.use_swanlab=true"), RunDir(tmp_path)
    url, folder = "https://swanlab.cn/@me/imf_ray/runs/1", str(run_dir.swanlab_dir)
    assert describe_tracking(config, run_dir) == ["SwanLab: online, project imf_ray"]
    assert describe_tracking(config, run_dir, swanlab_run=url) == [f"SwanLab: {url}"]
    (line,) = describe_tracking(config, run_dir, swanlab_run=folder)  # no server was reached
    assert line.startswith("SwanLab: offline. Upload it with:\n  for run in ")
