"""The metrics log of a run and its SwanLab videos."""

import io
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
from PIL import Image

from imf_ray.files import append_line
from imf_ray.training import swanlab_log
from imf_ray.training.run_dir import VALIDATIONS_FILE, RunDir
from imf_ray.training.run_records import RESTARTS, merge_metrics
from imf_ray.training.swanlab_log import SwanLabLog
from imf_ray.training.tracking import SampleLog, Tracker
from imf_ray.video import convert_to_gif, encode_video
from tests.helpers.trainers import config_of


def test_each_start_logs_restarts_and_skipped_checkpoints_and_episodes(tmp_path: Path) -> None:
    config, run_dir = config_of(), RunDir(tmp_path)
    for start_step, num_skipped in ((0, 0), (2, 3), (2, 0)):
        tracker = Tracker(run_dir, config, start_step, num_skipped)
        tracker.log(start_step + 1, {"loss": 0.5})
        tracker.close()
        for step in (2, 4):  # the next start resumes from step 2: the other one is invalid
            run_dir.checkpoint(step).mkdir(exist_ok=True)
    lines = run_dir.read_metrics()
    starts = [line for line in lines if RESTARTS in line]
    assert [line["restarts"] for line in starts] == [0, 1, 2]
    assert [line["invalid_checkpoints_skipped"] for line in starts] == [0, 1, 2]
    assert [line["skipped_episodes"] for line in starts] == [0, 3, 0]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 2, 3]


def test_each_validation_is_logged_once(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    tracker = Tracker(run_dir, config_of(), 0, 0)
    assert tracker.log_validations() == []
    lines = '{"step": 2, "a": 1}\n{"step": 4, "a": 2}\n{"step": 6, '
    (tmp_path / VALIDATIONS_FILE).write_text(lines)
    expected = [{"validated_step": 2, "a": 1}, {"validated_step": 4, "a": 2}]
    assert tracker.log_validations() == expected
    assert tracker.log_validations() == []
    tracker.close()
    resumed = Tracker(run_dir, config_of(), 4, 0)
    assert resumed.log_validations() == []
    assert [line["step"] for line in run_dir.read_metrics() if "validated" in line] == [2, 4]


def test_a_failed_validation_can_be_followed_by_a_successful_one(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    for line in ('{"step": 2, "validation_error": "lost"}', '{"step": 2, "a": 1}'):
        append_line(tmp_path / VALIDATIONS_FILE, line)
        for _ in range(2):
            tracker = Tracker(run_dir, config_of(), 2, 0)
            tracker.log_validations()
            tracker.close()
    validations = [line for line in run_dir.read_metrics() if "validated" in line]
    assert ["validation_error" in line for line in validations] == [True, False]
    latest: dict[str, Any] = {}
    for line in validations:
        latest = merge_metrics(latest, line)
    assert latest["a"] == 1 and "validation_error" not in latest


def test_sample_ids_are_on_disk_as_soon_as_they_are_logged(tmp_path: Path) -> None:
    log = SampleLog(RunDir(tmp_path), rank=1)
    log.log(7, np.array([3, 1]))
    (path,) = tmp_path.iterdir()
    assert path.name == "samples_rank_1.jsonl"
    assert path.read_text() == '{"step": 7, "samples": [3, 1]}\n'


@pytest.mark.parametrize(
    ("num_frames", "fps", "num_gif_frames", "period_ms"),
    [(1, 25, 1, 200), (25, 25, 5, 200), (20, 10, 10, 200), (4, 3, 4, 330)],
)
def test_a_video_is_converted_to_a_gif(
    num_frames: int, fps: int, num_gif_frames: int, period_ms: int
) -> None:
    frames = np.zeros((num_frames, 32, 48, 3), np.uint8)
    frames[..., 0] = np.linspace(0, 200, num_frames)[:, None, None]
    with Image.open(io.BytesIO(convert_to_gif(encode_video(frames, fps)))) as gif:
        assert gif.size == (48, 32) and gif.n_frames == num_gif_frames  # type: ignore[attr-defined]
        assert gif.info.get("duration") == period_ms


@pytest.mark.parametrize(
    ("answer", "modes"),
    [
        (OSError("no answer within 6 s"), ["offline"]),
        (URLError("no network"), ["offline"]),
        (HTTPError("https://api.swanlab.cn", 404, "not found", None, None), ["online"]),  # type: ignore[arg-type]
        (None, ["online"]),
    ],
)
def test_swanlab_is_offline_where_its_server_does_not_answer(
    answer: OSError | None, modes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_url(url: str) -> io.BytesIO:
        if answer is not None:
            raise answer
        return io.BytesIO()

    started = []
    monkeypatch.setattr(swanlab_log, "open_url", open_url)
    monkeypatch.setattr("swanlab.init", lambda mode, **_: started.append(mode))
    monkeypatch.setenv("SWANLAB_API_KEY", "key")
    config = config_of("train.use_swanlab=true", "train.swanlab_mode=online")
    SwanLabLog(RunDir(tmp_path), config)
    assert started == modes
