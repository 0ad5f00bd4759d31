"""What a run writes down about itself."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imf_ray.agents.pretrained import CONFIG_FILE
from imf_ray.config import to_yaml
from imf_ray.files import append_line
from imf_ray.training.checkpoint import VALIDATIONS
from imf_ray.training.gauges import GAUGES
from imf_ray.training.status import RUNNING, STALLED, TRAINED, read_status
from imf_ray.training.stop_signal import request_stop, safe_to_kill
from imf_ray.training.tracking import (
    METRICS_FILE,
    RESTARTS,
    WORKERS_DIR,
    SampleLog,
    Tracker,
    mark_workers_lost,
    merge_metrics,
    read_metrics,
    read_workers,
)
from imf_ray.video import decode_video, encode_gif, encode_video
from tests.helpers.trainers import config_of


def test_each_start_tells_how_the_run_came_here(tmp_path: Path) -> None:
    config = config_of()
    for start_step, bad in ((0, 0), (2, 3), (2, 0)):
        tracker = Tracker(tmp_path, config, start_step, bad)
        tracker.log(start_step + 1, {"loss": 0.5})
        tracker.close()
        for step in (2, 4):  # the later one is bad: the next start goes on from the other
            (tmp_path / f"checkpoint_{step:08d}").mkdir(exist_ok=True)
    lines = read_metrics(tmp_path / METRICS_FILE)
    starts = [line for line in lines if "restarts" in line]
    assert [line["restarts"] for line in starts] == [0, 1, 2]
    assert [line["invalid_checkpoints_skipped"] for line in starts] == [0, 1, 2]
    assert [line["skipped_episodes"] for line in starts] == [0, 3, 0]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 2, 3]


def test_validations_are_logged_and_told_once(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, config_of(), 0, 0)
    assert tracker.log_validations() == []
    (tmp_path / VALIDATIONS).write_text('{"step": 2, "a": 1}\n{"step": 4, "a": 2}\n{"step": 6, ')
    found = [{"validated_step": 2, "a": 1}, {"validated_step": 4, "a": 2}]
    assert tracker.log_validations() == found
    assert tracker.log_validations() == []
    tracker.close()
    again = Tracker(tmp_path, config_of(), 4, 0)
    assert again.log_validations() == []
    lines = read_metrics(tmp_path / METRICS_FILE)
    assert [line["step"] for line in lines if "validated" in line] == [2, 4]


def test_a_judgement_that_failed_may_be_followed_by_one_that_did_not(tmp_path: Path) -> None:
    for line in ('{"step": 2, "validation_error": "lost"}', '{"step": 2, "a": 1}'):
        append_line(tmp_path / VALIDATIONS, line)
        for _ in range(2):
            tracker = Tracker(tmp_path, config_of(), 2, 0)
            tracker.log_validations()
            tracker.close()
    judged = [line for line in read_metrics(tmp_path / METRICS_FILE) if "validated" in line]
    assert ["validation_error" in line for line in judged] == [True, False]
    latest: dict[str, Any] = {}
    for line in judged:
        latest = merge_metrics(latest, line)
    assert latest["a"] == 1 and "validation_error" not in latest


def test_a_late_judgement_does_not_turn_back_the_step(tmp_path: Path) -> None:
    config = config_of("train.max_steps=6")
    (tmp_path / CONFIG_FILE).write_text(to_yaml(config))
    tracker = Tracker(tmp_path, config, 0, 0)
    tracker.log(6, {"loss": 0.5})
    append_line(tmp_path / VALIDATIONS, '{"step": 5, "rollout/success_rate": 0.5}')
    tracker.log_validations()
    tracker.close()
    status = read_status(tmp_path, time.time())
    assert (status.step, status.state) == (6, TRAINED)
    assert status.metrics["rollout/success_rate"] == 0.5


def test_samples_are_there_as_soon_as_they_are_logged(tmp_path: Path) -> None:
    log = SampleLog(tmp_path, rank=1)
    log.log(7, np.array([3, 1]))
    (path,) = tmp_path.iterdir()
    assert path.name == "samples_rank_1.jsonl"
    assert path.read_text() == '{"step": 7, "samples": [3, 1]}\n'


def test_gauges_have_names_that_prometheus_takes() -> None:
    names = [name for name, _ in GAUGES.values()]
    assert len(set(names)) == len(names)
    assert all(name.startswith("imf_ray_") and name.isidentifier() for name in names)


@pytest.mark.parametrize("frames", [1, 5])
def test_a_video_becomes_a_gif(frames: int) -> None:
    pictures = np.zeros((frames, 32, 48, 3), np.uint8)
    pictures[..., 0] = 200
    gif = encode_gif(decode_video(encode_video(pictures)))
    assert gif.startswith(b"GIF89a") and b"\x00;" in gif[-3:]


def test_nobody_waits_for_a_checkpoint_of_workers_that_died(tmp_path: Path) -> None:
    (tmp_path / WORKERS_DIR).mkdir()
    (tmp_path / WORKERS_DIR / "rank_0.json").write_text('{"pid": 1}')
    request_stop(tmp_path)
    assert not safe_to_kill(tmp_path, max_steps=10)
    mark_workers_lost(tmp_path)
    assert safe_to_kill(tmp_path, max_steps=10)
    assert read_workers(tmp_path) == [{"pid": 1}]  # whose logs somebody may want to read


def test_a_run_is_silent_after_three_times_its_longest_pause(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text(to_yaml(config_of("train.max_steps=6")))
    begun = 1e9
    lines: list[dict[str, Any]] = [{"step": 0, RESTARTS: 0}, {"step": 1}, {"step": 2}]
    lines += [{"step": 2, RESTARTS: 1}, {"step": 3}]
    times = [0.0, 10.0, 1010.0, 90_000.0, 90_010.0]  # nobody was there for a day
    for line, seconds in zip(lines, times, strict=True):
        append_line(tmp_path / METRICS_FILE, json.dumps({**line, "time": begun + seconds}))
    states = [read_status(tmp_path, begun + 90_010.0 + age).state for age in (400, 2900, 3100)]
    assert states == [RUNNING, RUNNING, STALLED]
