"""An argument without `key=` is refused with the option that it is meant for."""

from __future__ import annotations

from pathlib import Path

import pytest

from imf_ray.cli import run_command
from imf_ray.command import Command
from imf_ray.config import load_config
from imf_ray.errors import UserError
from imf_ray.export import main as export

CHECKPOINT = "runs/mine/checkpoint_00000002"
FILES = (
    *(f"{CHECKPOINT}/{name}" for name in ("config.yaml", "manifest.json", "model.safetensors")),
    "runs/mine/metrics.jsonl",
    "runs/sweep 1/space.json",
    "demos/episode_0.hdf5",
    "space.yaml",
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a run, a sweep and a data set."""
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("command", "argument", "hint"),
    [
        ("evaluate", CHECKPOINT, f"checkpoint={CHECKPOINT}"),
        ("evaluate", "policies/sim_transfer", "checkpoint=policies/sim_transfer"),
        ("evaluate", "expert", "checkpoint=expert"),
        ("evaluate", "s3://bucket/a b", "'checkpoint=s3://bucket/a b'"),
        ("evaluate", "checkpoint", "checkpoint=VALUE"),
        ("train", "runs/mine", "run_name=mine storage_path={folder}/runs"),
        ("train", CHECKPOINT, "run_name=mine storage_path={folder}/runs"),
        ("tune", "runs/sweep 1/", "'run_name=sweep 1' storage_path={folder}/runs"),
        ("train", "demos", "data.dataset_dir=demos"),
        ("collect", "new", "data.dataset_dir=new"),
        ("tune", "space.yaml", "search_space=space.yaml"),
        ("tune", "other.YML", "search_space=other.YML"),
        ("tune", "quickstart", "search_space=quickstart"),
        ("train", "cpu_transfer", "recipe=cpu_transfer"),
        ("collect", "sim_transfer", "task=sim_transfer"),
        ("train", "mine.yaml", "config=mine.yaml"),
        ("train", "data.dataset_dir", "data.dataset_dir=VALUE"),
    ],
)
def test_the_option_is_named(
    command: str, argument: str, hint: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object) -> None:
        raise AssertionError("the command must not run")

    assert run_command(Command(command, run, examples=()), [argument]) == 2
    message = capsys.readouterr().err
    assert repr(argument) in message and hint.format(folder=folder) in message


@pytest.mark.parametrize("argument", ["top]", "", "runs", "s3://bucket/runs", "a\nb", "~nobody/x"])
def test_other_arguments_are_refused_with_the_form(
    argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Command("train", lambda *_: None, examples=())
    assert run_command(command, [argument]) == 2
    assert "key=value" in capsys.readouterr().err


def test_an_export_without_a_folder_or_a_checkpoint() -> None:
    with pytest.raises(UserError, match=f"export {CHECKPOINT} DIR"):
        export(load_config(), [], [CHECKPOINT])
    with pytest.raises(UserError, match=r"export RUN/checkpoint_\d+ DIR"):
        export(load_config(), [], [])
    with pytest.raises(UserError, match="3 paths are given"):
        export(load_config([f"checkpoint={CHECKPOINT}"]), [], ["new", "other"])
    with pytest.raises(UserError, match=f"export {CHECKPOINT} DIR"):
        export(load_config([f"checkpoint={CHECKPOINT}"]), [], [])
