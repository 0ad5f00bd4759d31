"""The steps of the demo, without running them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from imf_ray import demo
from imf_ray.cli import run_command
from imf_ray.command import Command, load_command
from imf_ray.schema import Config

Calls = list[tuple[str, Config, Sequence[str]]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The commands that the demo has called, with their configuration and options."""
    called: Calls = []

    def load(name: str) -> Command:
        def run(config: Config, overrides: Sequence[str]) -> str:
            called.append((name, config, overrides))
            return "another command"

        return Command(name, run, examples=(), resolve=load_command(name).resolve)

    monkeypatch.setattr(demo, "load_command", load)
    return called


def test_the_demo_evaluates_collects_and_tunes(
    calls: Calls,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(demo.COMMAND, ["cluster.num_cpus=3"]) == 0
    assert [name for name, _, _ in calls] == ["evaluate", "collect", "tune"]
    (_, evaluate, _), (_, collect, _), (_, tune, _) = calls
    assert all(config.cluster.num_cpus == 3 for _, config, _ in calls)
    assert evaluate.checkpoint == demo.POLICY
    assert collect.data.dataset_dir == tune.data.dataset_dir
    assert Path(tune.storage_path) == Path(str(evaluate.evaluate.output_dir)).parent
    printed = capsys.readouterr().out
    for name, _, overrides in calls:
        assert f"$ imf-ray {name} {overrides[0]}" in printed
    assert printed.splitlines()[-1].startswith("Next: imf-ray collect recipe=cpu_transfer")


def test_the_quick_demo_only_shows_the_shipped_policy(
    calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "a b"
    assert run_command(demo.COMMAND, [demo.QUICK, f"storage_path={storage}"]) == 0
    ((name, config, _),) = calls
    assert name == "evaluate" and config.evaluate.num_episodes == demo.QUICK_EPISODES
    assert config.evaluate.video == "all"
    assert config.evaluate.output_dir == str(storage / "demo/policy")
    assert "Next: imf-ray demo" in capsys.readouterr().out


@pytest.mark.parametrize("argument", ["train.lr=1", "runs/x", "--fast"])
def test_what_the_demo_does_not_use_is_refused(
    calls: Calls, argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(demo.COMMAND, [argument]) == 2
    assert argument in capsys.readouterr().err and not calls
