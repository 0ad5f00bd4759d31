"""Commands that are started while another process writes to their folder.

Claims of one process exclude each other, so each test claims a folder and then runs a command.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from imf_ray import claims
from imf_ray.__main__ import main
from imf_ray.claims import CLAIM_FILE, claim
from imf_ray.cli import EXIT_USER_ERROR
from imf_ray.config import load_config
from imf_ray.evaluation import candidates
from imf_ray.evaluation.candidates import resolve_candidate
from imf_ray.rollout.policy_spec import EXPERT
from imf_ray.storage import local_dir
from imf_ray.sweep.search_space import SearchSpace
from imf_ray.sweep.sweep_dir import SavedSpace, SweepDir
from imf_ray.training.run_dir import RunDir

EXPERT_OPTIONS = ["evaluate.num_episodes=2", "evaluate.video=none"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(claims, "BUSY_WAIT_S", 0.1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    assert not list(tmp_path.rglob(CLAIM_FILE))


def _claim(folder: str) -> AbstractContextManager[None]:
    return claim(local_dir(folder), "wait")


def _resume_auto(overrides: list[str]) -> list[str]:
    """Save a sweep, so that `resume=auto` finds it, and return the options that resume it."""
    SweepDir(Path("runs/sweep").absolute()).write_space(
        SavedSpace(SearchSpace("two", grid={"train.seed": [1, 2]}), overrides, 1.0)
    )
    return ["tune", "resume=auto"]


STARTS: dict[str, tuple[str, Callable[[], list[str]], str]] = {
    "train": ("runs/a", lambda: ["train", "run_name=a"], "run_name"),
    "train, another spelling": (
        "runs/a",
        lambda: ["train", "run_name=a", "storage_path=./x/../runs/"],
        "run_name",
    ),
    "train a trial of a sweep that runs": (
        "runs/sweep",
        lambda: ["train", "run_name=00000-seed_1", "storage_path=runs/sweep/trials"],
        "run_name",
    ),
    "train where a sweep runs": ("runs/sweep", lambda: ["train", "run_name=sweep"], "run_name"),
    "tune": ("runs/sweep", lambda: ["tune", "run_name=sweep"], "run_name"),
    "tune, one of whose trials is trained": (
        "runs/sweep/trials/00000-seed_1",
        lambda: ["tune", "run_name=sweep"],
        "run_name",
    ),
    "tune resume=auto": ("runs/sweep", lambda: _resume_auto([]), "run_name"),
    "collect": ("data/new", lambda: ["collect", "data.dataset_dir=data/new"], "data.dataset_dir"),
    "evaluate": (
        "out",
        lambda: ["evaluate", "checkpoint=expert", "evaluate.output_dir=out", *EXPERT_OPTIONS],
        "evaluate.output_dir",
    ),
}


@pytest.mark.parametrize(("folder", "start", "option"), STARTS.values(), ids=list(STARTS))
def test_a_second_start_is_refused(
    folder: str,
    start: Callable[[], list[str]],
    option: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = start()
    Path("x").mkdir()
    with _claim(folder):
        assert main(arguments) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert str(os.getpid()) in error and os.uname().nodename in error and option in error
    assert "Traceback" not in error and len(error.strip().splitlines()) == 1


def test_a_second_start_under_a_url_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with _claim("memory://bucket/runs/a"):
        assert main(["train", "run_name=a", "storage_path=memory://bucket/runs"]) == 2
    assert "memory://bucket/runs/a is in use" in capsys.readouterr().err


def test_evaluations_and_comparisons_of_one_policy_exclude_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without `evaluate.output_dir`, the records of one policy and its settings have one folder."""
    candidate = resolve_candidate(
        EXPERT, load_config(EXPERT_OPTIONS), EXPERT_OPTIONS, 500_000, Path("runs").absolute()
    )
    monkeypatch.setattr(candidates, "resolve_candidates", lambda *_: [candidate])
    commands = (
        ["evaluate", "checkpoint=expert", *EXPERT_OPTIONS],
        ["evaluate", "checkpoint=expert", "evaluate.num_episodes=9", "evaluate.video=none"],
        ["compare", "expert", "replay:data"],
    )
    for arguments in commands:
        with claim(candidate.evaluation.folder, "wait"):
            assert main(arguments) == EXIT_USER_ERROR
        assert f"{candidate.evaluation.folder} is in use" in capsys.readouterr().err


def test_a_refused_command_leaves_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "run_name=a", "data.dataset_dir=nowhere"]) == EXIT_USER_ERROR
    assert "nowhere" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_run_can_be_read_while_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = RunDir(Path("runs/a").absolute())
    run_dir.write_config("train: {max_steps: 5}\n")
    with _claim("runs/a"):
        writer = run_dir.open_metrics()
        writer.append(json.dumps({"step": 3, "time": 1.0, "loss": 0.5}))
        writer.close()
        assert main(["status", "runs/a"]) == 0
    assert "3/5" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "collect"])
def test_a_second_start_is_refused_before_the_imports_that_take_seconds(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, arguments, option = STARTS[command]
    for module in ("imf_ray.training.trainer", "imf_ray.demos.recorder"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    monkeypatch.setattr("imf_ray.cluster._connect_or_start", lambda *_: None)  # beside the imports
    with _claim(folder):
        assert main(arguments()) == EXIT_USER_ERROR
    assert option in capsys.readouterr().err
    if command == "train":  # a folder without episodes is refused as early
        assert main(arguments()) == EXIT_USER_ERROR
        assert "data.dataset_dir" in capsys.readouterr().err
        Path("data/sim_transfer").mkdir(parents=True)
        Path("data/sim_transfer/episode_0.hdf5").touch()
    with pytest.raises(ImportError):
        main(arguments())
