"""The list of commands, their help, and their arguments."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from imf_ray.__main__ import load_command, main
from imf_ray.cli import run_command
from imf_ray.command import Command
from imf_ray.schema import COMMANDS, all_options, command_options


def test_without_a_command_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    output = capsys.readouterr().out
    lines = [line for line in output.splitlines() if line.startswith("  ")]
    assert [line.split()[0] for line in lines] == list(COMMANDS)
    assert all(line.endswith(".") and len(line) <= 110 for line in lines)


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "Unknown command trian: did you mean train?" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_the_options_of_the_command(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["imf-ray"])
    assert main([name, "--help"]) == 0
    output = capsys.readouterr().out
    assert max(len(line) for line in output.splitlines()) <= 110
    listed = re.findall(r"^  ([a-z_.]+)=", output, flags=re.MULTILINE)
    options = [key for key in listed if key in all_options()]
    assert sorted(options) == sorted(command_options(name))
    words = " ".join(output.split())
    assert all(rules.help in words for rules in command_options(name).values())
    assert output.count(f"  imf-ray {name} ") >= 2  # examples
    assert ("agent=NAME" in output) == (name in ("train", "tune"))
    assert ("recipe=NAME" in output) == (name in ("train", "tune", "collect"))


def test_help_all_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--help-all"]) == 0
    output = capsys.readouterr().out
    assert all(f"\n  {key}=" in output for key in all_options())


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_valid_options(name: str) -> None:
    for example in load_command(name).examples:
        for item in example.split():
            key, separator, _ = item.partition("=")
            groups = {"agent", "task", "cluster", "recipe", "config"}
            assert not separator or key in {*command_options(name), *groups}, item


def test_positional_arguments_may_contain_an_equals_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1").mkdir()
    calls = []

    def run(config, overrides, arguments) -> None:
        calls.append((overrides, arguments))

    command = Command("status", run, examples=(), positional="DIR")
    assert run_command(command, ["lr=1", "elsewhere", "debug=false"]) == 0
    assert calls == [(["debug=false"], ["lr=1", "elsewhere"])]


def test_flags_of_a_command_are_explained_and_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    calls = []
    command = Command(
        "status",
        lambda config, overrides, arguments: calls.append(arguments),
        examples=(),
        positional="DIR",
        flags={"--watch": "show it again"},
    )
    assert run_command(command, ["--watch", "runs", "debug=false"]) == 0
    assert calls == [["--watch", "runs"]]
    assert run_command(command, ["runs", "--wach"]) == 2
    assert "Flags are --watch, --print-config" in capsys.readouterr().err
    assert run_command(command, ["--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "DIR [--watch] [key=value ...]" in words and "--watch show it again" in words
