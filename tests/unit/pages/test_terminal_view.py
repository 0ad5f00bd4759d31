"""The state of runs and sweeps in a terminal."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from upath import UPath

from imf_ray.checkpoint_dir import CONFIG_FILE
from imf_ray.config import load_config, to_yaml
from imf_ray.errors import StorageError
from imf_ray.folders import METRICS_FILE
from imf_ray.pages import terminal_watch
from imf_ray.pages.model import Curve, Row, Snapshot, State, Success
from imf_ray.pages.terminal_view import TerminalView
from imf_ray.pages.terminal_watch import open_reader, watch

COLUMNS = ("success", "n", "loss", "samples/s", "action error", "saved", "last entry", "restarts")
STATES = (State.RUNNING, State.FINISHED, State.STALLED, State.STOPPED, State.FAILED, State.PENDING)


def row(number: int, state: State = State.RUNNING, **values: object) -> Row:
    """A trial with a long name, and a value in every column."""
    name = f"{number:05d}-n_emb_96-n_layer_{number}-größe_大-pretrained_backbone_weights_resnet18"
    defaults = Row(
        name=name,
        label=name,
        state=state,
        success=Success(number / 100, 0.0, 0.5, 20),
        action_error=0.0123,
        step=1199,
        max_steps=1200,
        saved_step=1000,
        samples_per_s=812.4,
        time_left_s=75.0,
        last_entry_age_s=3.0,
        restarts=1,
        curves=[Curve("loss", [1, 2], [0.5, 0.25])],
    )
    return dataclasses.replace(defaults, **values)  # type: ignore[arg-type]


def sweep(rows: list[Row], **values: object) -> Snapshot:
    content = Snapshot("sweep", "sizes", "runs/sizes", 1e9, State.RUNNING, rows)
    return dataclasses.replace(content, **values)  # type: ignore[arg-type]


def lines(snapshot: Snapshot, width: int, height: int | None = None) -> list[str]:
    """Return the printed lines without spaces at their ends."""
    console = Console(width=width, height=height, file=io.StringIO(), record=True, markup=False)
    console.print(TerminalView(snapshot, fit_height=height is not None), crop=False)
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.mark.parametrize("width", [80, 110, 160])
def test_names_differ_and_columns_are_shown_or_named(width: int) -> None:
    rows = [row(number, state) for number, state in enumerate(STATES)]
    text = lines(sweep(rows), width)
    assert all(cell_len(line) <= width for line in text)
    table = [line for line in text if line.startswith("0000")]
    assert len({line.split()[0] for line in table}) == len(rows)
    for line, content in zip(table, rows, strict=True):
        assert f" {content.state} " in line and "0.0" in line
    head = next(line for line in text if line.startswith("run "))
    hidden = " ".join(text).partition(f"Not shown at {width} columns: ")[2]
    for column in COLUMNS:
        assert (column in head) != (f"{column} (from " in hidden), column
    assert hidden or width == 160


def test_a_hidden_column_appears_at_the_width_that_is_named() -> None:
    rows = [row(number) for number in range(3)]
    hidden = " ".join(lines(sweep(rows), 80)).partition("columns: ")[2].split("), ")
    widths = {part.rpartition(" (from ")[0]: int(part.split("from ")[1][:3]) for part in hidden}
    assert "restarts" in widths
    for column, width in widths.items():
        heads = [lines(sweep(rows), columns)[2:4] for columns in (width - 1, width)]
        assert [any(column in line for line in head) for head in heads] == [False, True]


def test_progress_and_summary() -> None:
    rows = [row(1), row(2, State.FINISHED, step=1200), row(3, State.PENDING, step=None)]
    text = lines(sweep(rows), 160)
    running, finished, _ = (line for line in text if line.startswith("000"))
    assert "1199/1200 99%" in running and "1 min 15 s" in running  # never 100 % before the end
    assert "1200/1200 " in finished and "%" not in finished
    summary = " ".join(" ".join(text[:2]).split())
    assert "3 trials: 1 pending, 1 running, 1 finished." in summary
    assert f"Best success so far: 0.03 [0.00, 0.50] of 20 episodes ({rows[2].name})" in summary


def test_notes_can_be_copied() -> None:
    reason = f"it diverged, see {'/path' * 40}"
    failed = row(1, State.FAILED, error=reason)
    assert f"{failed.name}: {reason}" in lines(sweep([failed], notes=["Resume it."]), 80)


def test_a_low_screen_shows_what_needs_attention_and_counts_the_rest() -> None:
    rows = [row(number, State.PENDING) for number in range(60)]
    rows[40] = row(40, State.FAILED, error="it diverged " * 20)
    rows[50] = row(50, State.RUNNING)
    text = lines(sweep(rows, notes=[f"note {number}" for number in range(9)]), 80, 24)
    assert len(text) <= 24
    assert any(line.startswith("00040") and "failed" in line for line in text)
    assert any(line.startswith("00050") and "running" in line for line in text)
    table = [line for line in text if line.startswith("000") and "0.0" in line]
    left_out = 60 - len(table)
    assert f"Not shown, for lack of lines: {left_out} pending, 7 notes." in text[-1]
    everything = lines(sweep(rows[:3]), 80, 24)
    assert not any("for lack of lines" in line for line in everything)


class Reads:
    """A reader that returns or raises one thing after the other, and then Ctrl-C."""

    def __init__(self, *results: Snapshot | Exception) -> None:
        self._results = list(results)

    def __call__(self) -> Snapshot:
        if not self._results:
            raise KeyboardInterrupt
        result = self._results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal_watch.time, "sleep", lambda _: None)


def watched(read: Callable[[], Snapshot], terminal: bool) -> str:
    console = Console(width=110, height=24, file=io.StringIO(), force_terminal=terminal)
    watch(read, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("no_pause")
def test_a_file_gets_a_table_for_each_change_of_results() -> None:
    first = sweep([row(1)])
    step = sweep([row(1, step=1200)], read_at=2e9)
    success = sweep([row(1, success=Success(0.5, 0.4, 0.6, 20))])
    text = watched(Reads(first, first, step, success, success), terminal=False)
    assert text.count("Best success so far") == 2 and "\x1b" not in text
    assert text.startswith("2001-09-09") and "0.50 [0.40, 0.60]" in text


@pytest.mark.usefixtures("no_pause")
def test_a_file_gets_a_table_now_and_then_if_anything_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(terminal_watch, "PLAIN_INTERVAL_S", 0.0)
    first, later = sweep([row(1)]), sweep([row(1, last_entry_age_s=9.0)], read_at=2e9)
    text = watched(Reads(first, later, sweep([row(1, step=1200)])), terminal=False)
    assert text.count("Best success so far") == 2


@pytest.mark.usefixtures("no_pause")
def test_a_terminal_shows_the_newest_content_and_keeps_it_at_the_end() -> None:
    lost = StorageError("s3://bucket cannot be read.")
    text = watched(Reads(sweep([row(1)]), lost, sweep([row(2)])), terminal=True)
    assert "s3://bucket cannot be read. This is the content of 2001-09-09" in text
    screen, _, rest = text.rpartition("\x1b[?1049l")  # the end of the screen of its own
    assert "00001-" in screen and "00002-" in rest and "00001-" not in rest


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("train: {max_steps: [}", "line 1, column"),
        ("train: 3", "train"),
        ("train: {max_steps: many}", "train.max_steps"),
        ("", "empty"),
    ],
)
def test_a_damaged_configuration_is_a_row_with_its_reason(
    damage: str, reason: str, tmp_path: Path
) -> None:
    good = to_yaml(load_config(["train.max_steps=6"]))
    for name, config in (("good", good), ("bad", damage)):
        (tmp_path / name).mkdir()
        (tmp_path / name / CONFIG_FILE).write_text(config)
        (tmp_path / name / METRICS_FILE).write_text(json.dumps({"step": 3, "time": 1.0}) + "\n")
    (tmp_path / "locked" / CONFIG_FILE).mkdir(parents=True)  # nobody can read it
    (tmp_path / "locked" / METRICS_FILE).write_text(json.dumps({"step": 3, "time": 1.0}) + "\n")
    with open_reader(str(tmp_path)) as read:
        text = lines(read(), 110)
    assert "locked: config.yaml cannot be read: Is a directory." in text
    assert any(line.startswith("good ") and "stalled  3/6 50%" in line for line in text)
    assert any(line.startswith("bad ") and "stalled" in line for line in text)
    assert any(line.startswith("bad: ") and reason in line for line in text)


def test_a_url_is_read_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imf_ray.pages.mirror.SYNC_INTERVAL_S", 0.0)
    monkeypatch.setattr("imf_ray.pages.mirror.MAX_SYNC_TIME_FRACTION", 1e9)
    bucket = UPath("memory://status-watch/run")
    (bucket / CONFIG_FILE).write_text(to_yaml(load_config(["train.max_steps=6"])))
    first, second = (json.dumps({"step": step, "time": 1.0}) + "\n" for step in (3, 5))
    (bucket / METRICS_FILE).write_text(first)
    with open_reader(str(bucket)) as read:
        assert read().rows[0].step == 3
        (bucket / METRICS_FILE).write_text(first + second)
        assert read().rows[0].step == 5
        assert read().path == str(bucket)
