"""Progress bars on a terminal and plain lines elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from imf_ray.terminal import ProgressBars


def test_plain_lines_without_a_terminal() -> None:
    output = io.StringIO()
    with ProgressBars(Console(file=output, width=80), lines=4) as bars:
        for completed in range(1, 9):
            bars.update("expert", completed, total=8, text=f"success {completed}")
    lines = output.getvalue().splitlines()
    assert lines == [f"expert: {n}/8, success {n}" for n in (2, 4, 6, 8)]


def test_bar_on_a_terminal() -> None:
    output = io.StringIO()
    with ProgressBars(Console(file=output, width=80, force_terminal=True)) as bars:
        bars.update("expert", 1, total=2, text="[brackets] stay")
        bars.update("expert", 2, total=2, text="[brackets] stay")
    assert "2/2" in output.getvalue() and "[brackets] stay" in output.getvalue()
