"""The content of a page as text for a terminal: a summary, a table and notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from imf_ray.pages.formats import count_text, duration_text, success_text
from imf_ray.pages.model import Row, Snapshot, State
from imf_ray.tables import Column, FittedTable

STYLES = {
    State.PENDING: "dim",
    State.RUNNING: "cyan",
    State.STALLED: "bold yellow",
    State.FINISHED: "green",
    State.STOPPED: "magenta",
    State.FAILED: "bold red",
}
"""Color of each state, in addition to its name."""
URGENCY = (State.STALLED, State.FAILED, State.RUNNING, State.STOPPED, State.FINISHED, State.PENDING)
"""States in the order in which rows are kept if a screen has too few lines for all."""
MAX_SCREEN_NOTES = 3
"""Maximum number of notes on a screen that has too few lines for all rows and notes."""
NOUNS = {"sweep": "trial", "storage": "folder"}
"""Name of a row by the kind of the snapshot."""


class TerminalView:
    """A snapshot for `console.print(..., crop=False)`.

    Args:
        snapshot: the content.
        fit_height: wrap notes, and leave out rows and notes so that the view fits the height of the
            console. A line counts what is left out.
    """

    def __init__(self, snapshot: Snapshot, fit_height: bool = False) -> None:
        self._snapshot, self._fit_height = snapshot, fit_height
        self._rows = sorted(snapshot.rows, key=lambda row: row.name)
        self._notes = [*_notes(self._rows), *snapshot.notes]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        num_rows, num_notes = len(self._rows), len(self._notes)
        if self._fit_height:
            num_rows, num_notes = self._fitting(console, options)
        yield from self._parts(num_rows, num_notes)

    def _fitting(self, console: Console, options: ConsoleOptions) -> tuple[int, int]:
        """Return the numbers of rows and notes that fit the height of the console."""

        def spare_lines(num_rows: int, num_notes: int) -> int:
            parts = self._parts(num_rows, num_notes)
            used = sum(len(console.render_lines(part, options.reset_height())) for part in parts)
            return console.height - used

        num_rows, num_notes = len(self._rows), len(self._notes)
        may_fit = num_rows + num_notes < console.height  # rendering many rows takes long
        if may_fit and spare_lines(num_rows, num_notes) >= 0:
            return num_rows, num_notes
        num_rows, num_notes = min(num_rows, console.height), min(num_notes, MAX_SCREEN_NOTES)
        return max(0, min(num_rows, num_rows + spare_lines(num_rows, num_notes))), num_notes

    def _parts(self, num_rows: int, num_notes: int) -> Iterable[Text | FittedTable]:
        yield _summary(self._snapshot)
        by_urgency = sorted(self._rows, key=lambda row: URGENCY.index(row.state))
        rows = sorted(by_urgency[:num_rows], key=lambda row: row.name)
        if rows:
            yield _table(rows)
        for note in self._notes[:num_notes]:
            # Without line breaks of ours, so that paths and commands can be copied.
            is_wrapped = self._fit_height
            yield Text(note) if is_wrapped else Text(note, no_wrap=True, overflow="ignore")
        left_out = [_count_states(by_urgency[num_rows:])] if by_urgency[num_rows:] else []
        if num_notes < len(self._notes):
            left_out.append(count_text(len(self._notes) - num_notes, "note"))
        if left_out:
            yield Text(f"Not shown, for lack of lines: {', '.join(left_out)}.")


def _summary(snapshot: Snapshot) -> Text:
    """Return the state, the number of rows in each state, and the best success rate."""
    text = Text.assemble(
        (snapshot.title, "bold"), ": ", (str(snapshot.state), STYLES[snapshot.state])
    )
    noun = NOUNS.get(snapshot.kind)
    if noun is not None and snapshot.rows:
        total = count_text(len(snapshot.rows), noun)
        text.append(f". {total}: {_count_states(snapshot.rows)}")
    best = max(
        (row for row in snapshot.rows if row.success is not None),
        key=lambda row: row.success.rate if row.success else 0.0,
        default=None,
    )
    if best is not None and best.success is not None:
        name = "" if noun is None else f" ({best.name})"
        text.append(f". Best success so far: {success_text(best.success)}")
        text.append(f" of {count_text(best.success.episodes, 'episode')}{name}")
    text.append(".")
    return text


def _count_states(rows: Sequence[Row]) -> str:
    """Return the number of rows in each state, such as `2 running, 1 failed`."""
    counts = Counter(row.state for row in rows)
    return ", ".join(f"{counts[state]} {state}" for state in State if counts[state])


def _table(rows: Sequence[Row]) -> FittedTable:
    """Return a table with one row per trial, run or sweep, the most important columns first.

    Columns without any value are left out.
    """
    columns = {
        "step": [_progress(row) for row in rows],
        "time left": [_duration(row.time_left_s) for row in rows],
        "success": ["" if row.success is None else success_text(row.success) for row in rows],
        "n": ["" if row.success is None else str(row.success.episodes) for row in rows],
        "loss": [_last(row, "loss", "{:.4f}") for row in rows],
        "samples/s": [_number(row.samples_per_s, "{:.0f}") for row in rows],
        "action error": [_number(row.action_error, "{:.4f}") for row in rows],
        "saved": [_number(row.saved_step, "{}") for row in rows],
        "last entry": [_duration(row.last_entry_age_s, " ago") for row in rows],
        "restarts": [str(row.restarts or "") for row in rows],
    }
    return FittedTable(
        [
            Column("run", [row.name for row in rows], is_name=True),
            Column("state", [Text(str(row.state), STYLES[row.state]) for row in rows]),
            *(Column(title, cells) for title, cells in columns.items() if any(cells)),
        ],
        num_keys=2,
        fold=False,
        legend=False,
    )


def _progress(row: Row) -> str:
    """Return the step, with the share of all steps until the run has ended."""
    if row.step is None:
        return ""
    if row.state in (State.RUNNING, State.STALLED) and row.max_steps:
        return f"{row.step}/{row.max_steps} {100 * row.step // row.max_steps}%"
    return f"{row.step}/{row.max_steps}" if row.step == row.max_steps else str(row.step)


def _number(value: float | None, template: str) -> str:
    return "" if value is None else template.format(value)


def _duration(seconds: float | None, suffix: str = "") -> str:
    return "" if seconds is None else f"{duration_text(seconds)}{suffix}"


def _last(row: Row, metric: str, template: str) -> str:
    """Return the last value of a curve."""
    values = [curve.values[-1] for curve in row.curves if curve.metric == metric and curve.values]
    return template.format(values[0]) if values else ""


def _notes(rows: Sequence[Row]) -> Iterable[str]:
    for row in rows:
        for note in [row.error, *row.notes]:
            if note is not None:
                yield f"{row.name}: {note}"
