"""The table of results: its columns, and the cells of each row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from markupsafe import Markup, escape

from imf_ray.pages.charts import row_key
from imf_ray.pages.formats import (
    duration_text,
    interval_text,
    number_text,
    value_text,
)
from imf_ray.pages.model import Row, Snapshot, State, Success

BASELINE_STATE = "baseline"
MIN_FIXED_ERROR = 1e-3
"""Smallest action error with four decimals; smaller ones have three significant digits."""
REWARD_HELP = "Mean over episodes of the summed reward; higher is better"
ERROR_HELP = "Mean absolute error of normalized actions on held-out episodes; lower is better"
SPEED_HELP = "Training samples per second: the newest value, and the median of a run that has ended"
MAX_DETAILED_ROWS = 200
"""Maximum number of rows with details of their own; rows that failed always have some."""


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    title: str
    help: str
    is_number: bool = True
    is_descending: bool = False
    """True if the first click on the header sorts the largest value first."""

    @property
    def css_class(self) -> str:
        """Class of the column's cells: `num` is aligned to the right, `name` stays visible."""
        return "num" if self.is_number else "name" if self.title == "name" else ""


@dataclass(frozen=True)
class Cell:
    """A cell of the table; `sort` is the number or text that the script sorts by."""

    content: str | Markup = ""
    sort: str = ""

    def html(self, css_class: str) -> str:
        """Return the cell as HTML; pages have thousands, for which a template is slow."""
        content, sort = escape(self.content), escape(self.sort)
        data = f' data-sort="{sort}"' if sort and sort != content else ""
        return f"<td{css_class}{data}>{content}</td>"


@dataclass(frozen=True)
class TableRow:
    """A row of the table."""

    key: str
    is_baseline: bool
    cells: Sequence[Cell]
    html: Markup
    """The cells as HTML."""


@dataclass(frozen=True)
class ResultsTable:
    """The table of results."""

    columns: Sequence[Column]
    rows: Sequence[TableRow]


def results_table(
    snapshot: Snapshot, labels: Mapping[str, str], *, is_served: bool = False
) -> ResultsTable:
    """Return the table: the expert, the rows in their order, then the other baselines.

    Columns without any value are left out.

    Args:
        labels: short label of each row, by its name.
        is_served: a server shows the page, and the pages of the rows of a storage folder.
    """
    is_first = [row.label == "expert" for row in snapshot.baselines]
    first = [row for row, flag in zip(snapshot.baselines, is_first, strict=True) if flag]
    last = [row for row, flag in zip(snapshot.baselines, is_first, strict=True) if not flag]
    rows = [*first, *snapshot.rows, *last]
    ranks = {row.name: rank for rank, row in enumerate(snapshot.rows, 1)}
    names = {row.name for row in snapshot.baselines}
    make_name = _make_name(snapshot, labels, is_served)
    columns = [
        (column, [make_cell(row) for row in rows])
        for column, make_cell in _columns(snapshot, ranks, names, make_name)
    ]
    columns = [(column, cells) for column, cells in columns if any(cell.content for cell in cells)]
    css_classes = [f' class="{column.css_class}"' * bool(column.css_class) for column, _ in columns]
    table_rows = []
    for index, row in enumerate(rows):
        cells = [column_cells[index] for _, column_cells in columns]
        html = map(Cell.html, cells, css_classes)
        table_rows.append(
            TableRow(row_key(row.name), row.name in names, cells, Markup("".join(html)))
        )
    return ResultsTable([column for column, _ in columns], table_rows)


def detailed_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with details of their own on the page: the best ones, and all that failed."""
    return [row for index, row in enumerate(rows) if index < MAX_DETAILED_ROWS or row.error]


def _columns(
    snapshot: Snapshot,
    ranks: Mapping[str, int],
    baselines: set[str],
    make_name: Callable[[Row], Cell],
) -> Iterator[tuple[Column, Callable[[Row], Cell]]]:
    """Generate the columns, each with the function that makes its cells."""

    progress = [
        (Column("step", "Step so far, or of the best checkpoint", is_descending=True), _step),
        (Column("time left", "Estimated time until training ends"), _duration("time_left_s")),
    ]

    def rank(row: Row) -> Cell:
        has_result = row.success is not None or row.action_error is not None
        number = ranks.get(row.name) if has_result else None
        return Cell("" if number is None else str(number), "" if number is None else str(number))

    def state(row: Row) -> Cell:
        return _state(row, row.name in baselines)

    if snapshot.kind != "storage":
        yield Column("#", "Rank by success rate, then by action error"), rank
    yield Column("name", "Name; a click shows its details", is_number=False), make_name
    yield Column("state", "State of training and validation", is_number=False), state
    if snapshot.is_active:
        yield from progress
    yield Column("success", "Success rate with its 95 % interval", is_descending=True), _success
    yield Column("0 to 1", "The interval as a line", False, True), _whisker
    yield Column("n", "Number of episodes", is_descending=True), _episodes
    for option, short_name in snapshot.varied.items():
        is_number = all(isinstance(row.params.get(option, 0), int | float) for row in snapshot.rows)
        yield Column(short_name, option, is_number), _param(option)
    yield Column("reward", REWARD_HELP, is_descending=True), _reward
    yield Column("action error", ERROR_HELP), _action_error
    if not snapshot.is_active:
        yield from progress
    yield Column("samples/s", SPEED_HELP, is_descending=True), _speed
    yield Column("last entry", "Time since the last line of the log"), _entry_age
    yield Column("wall time", "Time from start to end"), _duration("wall_s")
    yield Column("CPU time", "CPU time of all processes"), _duration("cpu_s")
    yield Column("restarts", "Number of times it was resumed", is_descending=True), _restarts


def state_chip(state: str) -> Markup:
    """Return a state as a word with its symbol and colour."""
    return Markup(f'<span class="state s-{escape(state.partition(" ")[0])}">{escape(state)}</span>')


def whisker(success: Success) -> Markup:
    """Return the interval of a success rate as a line with a dot, drawn by the style sheet."""
    low, rate, high = (f"{100 * value:.0f}" for value in (success.low, success.rate, success.high))
    return Markup(f'<i class="w" style="--l:{low};--m:{rate};--h:{high}"></i>')


def _make_name(
    snapshot: Snapshot, labels: Mapping[str, str], is_served: bool
) -> Callable[[Row], Cell]:
    """Return a function that makes the cell with a row's name, which links to its details."""
    is_storage = snapshot.kind == "storage"
    detailed = set() if is_storage else {row.name for row in detailed_rows(snapshot.rows)}

    def cell(row: Row) -> Cell:
        label, name = escape(labels[row.name]), escape(row.name)
        if row.name in detailed:
            link = f"#row-{row_key(row.name)}"
        elif is_storage and is_served and row.link is not None and is_own_page(row.link):
            link = escape(row.link)
        else:
            return Cell(Markup(f'<span title="{name}">{label}</span>'), row.label)
        return Cell(Markup(f'<a href="{link}" title="{name}">{label}</a>'), row.label)

    return cell


def is_own_page(link: str) -> bool:
    """Return True if a link stays on the server of the page, and runs no script."""
    address = urlsplit(link)
    return not (address.scheme or address.netloc) and link.isprintable() and "\\" not in link


def _state(row: Row, is_baseline: bool) -> Cell:
    if is_baseline:
        return Cell(state_chip(BASELINE_STATE), BASELINE_STATE)
    order = list(State).index(row.state)
    return Cell(state_chip(str(row.state)), f"{order} {row.state}")


def _success(row: Row) -> Cell:
    if row.success is None:
        return Cell()
    rate = f"{row.success.rate:.2f}"
    shown = Markup(f"<b>{rate}</b> <small>{interval_text(row.success)}</small>")
    return Cell(shown, f"{row.success.rate:.6g}")


def _whisker(row: Row) -> Cell:
    if row.success is None:
        return Cell()
    return Cell(whisker(row.success), f"{row.success.low:.6g}")


def _episodes(row: Row) -> Cell:
    return Cell() if row.success is None else _count(row.success.episodes)


def _param(option: str) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        if option not in row.params:
            return Cell()
        value = row.params[option]
        shown = value_text(value)
        return Cell(shown, str(value) if isinstance(value, float) else shown)

    return cell


def _reward(row: Row) -> Cell:
    return Cell() if row.reward is None else Cell(f"{row.reward:.1f}", str(row.reward))


def _action_error(row: Row) -> Cell:
    if row.action_error is None:
        return Cell()
    error = row.action_error
    shown = f"{error:.4f}" if MIN_FIXED_ERROR <= error < 10 else number_text(error)
    return Cell(shown, str(error))


def _step(row: Row) -> Cell:
    if row.step is None:
        return Cell()
    shown = Markup(f"{row.step:,}")
    if row.max_steps and row.state in (State.PENDING, State.RUNNING, State.STALLED):
        shown = Markup(
            f'<progress max="{row.max_steps}" value="{row.step}"></progress> '
            f"{row.step:,} of {row.max_steps:,}"
        )
    return Cell(shown, str(row.step))


def _speed(row: Row) -> Cell:
    if row.samples_per_s is None:
        return Cell()
    return Cell(number_text(row.samples_per_s), str(row.samples_per_s))


def _entry_age(row: Row) -> Cell:
    if row.last_entry_age_s is None or row.state not in (State.RUNNING, State.STALLED):
        return Cell()
    return Cell(f"{duration_text(row.last_entry_age_s)} ago", str(row.last_entry_age_s))


def _duration(name: str) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        seconds = getattr(row, name)
        return Cell() if seconds is None else Cell(duration_text(seconds), str(seconds))

    return cell


def _restarts(row: Row) -> Cell:
    return _count(row.restarts) if row.restarts else Cell()


def _count(count: int) -> Cell:
    return Cell(f"{count:,}", str(count))
