"""Activities, and lines where there is no terminal."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from imf_ray import progress_bars
from imf_ray.progress_bars import ProgressBars, activity


def pipe() -> Console:
    return Console(file=io.StringIO(), width=80)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.fixture(autouse=True)
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bars, "MAX_SILENCE_S", 0.1)


def test_an_activity_without_a_terminal_repeats_its_line() -> None:
    console = pipe()
    with activity("Loading", console):
        time.sleep(0.35)
    first, *repeated = lines(console)
    assert first == "Loading ..."
    assert 1 <= len(repeated) <= 3 and all(line == "Loading ... 0 s" for line in repeated)
    time.sleep(0.2)
    assert len(lines(console)) == 1 + len(repeated)


def test_an_activity_on_a_terminal_leaves_nothing() -> None:
    output = io.StringIO()
    console = Console(file=output, width=80, force_terminal=True, color_system=None)
    with activity("Loading", console):
        time.sleep(0.05)
    assert "Loading" in output.getvalue()
    assert output.getvalue().endswith("\x1b[2K")


def test_an_activity_passes_errors_on() -> None:
    with pytest.raises(ValueError, match="reason"), activity("Loading", pipe()):
        raise ValueError("reason")


def test_bars_without_a_terminal_print_their_newest_state_again() -> None:
    console = pipe()
    with ProgressBars(console, lines=2) as bars:
        bars.start("a", 4)
        bars.update("b", 1, 4, "text")
        time.sleep(0.25)
        bars.update("a", 4, 4)
        bars.update("b", 4, 4, "done")
    printed = lines(console)
    assert "a: 0/4, b: 1/4, text (0 s so far)" in printed
    assert printed[-2:] == ["a: 4/4", "b: 4/4, done"]


def test_many_bars_take_one_line() -> None:
    console = pipe()
    with ProgressBars(console, lines=2) as bars:
        for number in range(9):
            bars.move(f"trial {number}", 1, 10)
        time.sleep(0.15)
    assert lines(console)[0].endswith("trial 3: 1/10 and 5 more (0 s so far)")


def test_a_bar_moves_without_lines_of_its_own() -> None:
    console = pipe()
    with ProgressBars(console) as bars:
        for completed in range(5):
            bars.move("run", completed, 10)
    assert lines(console) == []
