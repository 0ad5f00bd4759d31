"""Records of launches: what a start and an end write, and what a killed launch leaves."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

import imf_ray
from imf_ray import launches
from imf_ray.errors import UserError
from imf_ray.files import read_json_lines
from imf_ray.launches import INTERRUPTED, LaunchEnd, LaunchStart, parse_launch, recorded_launch
from imf_ray.pages.launch_history import LaunchHistory
from imf_ray.pages.model import State


def test_a_launch_writes_its_start_and_its_end(tmp_path: Path) -> None:
    history = LaunchHistory(tmp_path)
    arguments = ["data.dataset_dir=s3://key:s3cr3t@bucket/a b", "run_name=it's"]
    with recorded_launch(tmp_path, "train", arguments):
        history.update()
        assert not history.has_ended and history.outcome is None
        sum(number * number for number in range(200_000))
    start, end = read_json_lines(tmp_path / "launches.jsonl", parse_launch).rows
    assert isinstance(start, LaunchStart) and isinstance(end, LaunchEnd) and start.id == end.id
    assert "s3cr3t" not in (tmp_path / "launches.jsonl").read_text()
    words = shlex.split(start.command)
    assert words == ["imf-ray", "train", "data.dataset_dir=s3://***@bucket/a b", "run_name=it's"]
    assert start.versions["imf_ray"].startswith(imf_ray.__version__)
    assert {"Python", "torch", "ray", "mujoco"} <= start.versions.keys()
    assert end.wall_s > 0 and end.cpu_s > 0 and end.error is None
    history.update()
    assert history.outcome == State.FINISHED and history.launches[0].cpu_s == end.cpu_s


@pytest.mark.parametrize(
    ("error", "text", "outcome"),
    [
        (KeyboardInterrupt("resume"), INTERRUPTED, State.STOPPED),
        (UserError("1 of 2 trials failed: HF_TOKEN=s3cr3t"), "failed: HF_TOKEN=***", State.FAILED),
        (OSError("https://a:s3cr3t@host"), "OSError", State.FAILED),
    ],
)
def test_a_launch_that_fails(
    error: BaseException, text: str, outcome: State, tmp_path: Path
) -> None:
    with pytest.raises(type(error)), recorded_launch(tmp_path, "tune", []):
        raise error
    history = LaunchHistory(tmp_path)
    history.update()
    assert text in str(history.launches[-1].error) and history.outcome == outcome
    assert "s3cr3t" not in (tmp_path / "launches.jsonl").read_text()


def test_damaged_lines_and_killed_launches(tmp_path: Path) -> None:
    file = tmp_path / "launches.jsonl"
    killed = {"id": "a", "started_at": 1.0, "command": "imf-ray tune", "host": "h", "pid": 3}
    lines = ["{", "[]", json.dumps({**killed, "started_at": "x"}), *[json.dumps(killed)] * 2]
    file.write_text("".join(f"{line}\n" for line in lines))
    history = LaunchHistory(tmp_path)
    history.update()
    (launch,) = history.launches
    assert (launch.command, launch.pid, launch.wall_s) == ("imf-ray tune", 3, None)
    assert not history.has_ended and history.error is None
    with recorded_launch(tmp_path, "tune", ["resume=auto"]):
        pass
    history.update()
    assert history.has_ended and len(history.launches) == 2


def test_the_commit_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "imf_ray" / "__init__.py"
    monkeypatch.setattr(imf_ray, "__file__", str(package))
    assert launches.checkout_commit() is None
    git = tmp_path / ".git"
    (git / "refs/heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert launches.checkout_commit() is None
    (git / "packed-refs").write_text(
        "# pack-refs\nabc0 refs/heads/mainline\nabc1 refs/heads/main\n"
    )
    assert launches.checkout_commit() == "abc1"
    (git / "refs/heads/main").write_text("abc2\n")
    assert launches.checkout_commit() == "abc2"
    (git / "HEAD").write_text("abc3\n")
    assert launches.checkout_commit() == "abc3"
    worktree = tmp_path / "tree"
    worktree.mkdir()
    (worktree / ".git").write_text(f"gitdir: {git}\n")
    monkeypatch.setattr(imf_ray, "__file__", str(worktree / "imf_ray" / "__init__.py"))
    assert launches.checkout_commit() == "abc3"
