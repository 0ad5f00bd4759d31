"""Tables that fit the width of the terminal, and hide nothing without saying so."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from imf_ray.labels import short_labels

GAP = 2
"""Number of spaces between two columns."""
MIN_NAME_WIDTH = 15
"""Width in columns of a terminal down to which names are shortened before columns are moved."""
MIN_SENTENCE_WIDTH = 26
"""Width down to which sentences are wrapped before columns are moved."""


@dataclass(frozen=True)
class Column:
    """One column of a `FittedTable`."""

    title: str
    cells: Sequence[str | Text]
    is_name: bool = False
    """Long cells are replaced by short labels, see `imf_ray.labels`."""
    is_sentence: bool = False
    """Long cells are wrapped at spaces."""

    @property
    def width(self) -> int:
        """Width of the longest line."""
        return max(map(cell_len, [self.title, *self.lines()]))

    @property
    def min_width(self) -> int:
        """Smallest width to which names can be shortened or sentences wrapped."""
        if self.is_sentence:
            return min(self.width, max(MIN_SENTENCE_WIDTH, cell_len(self.title)))
        if self.is_name:
            return min(self.width, max(MIN_NAME_WIDTH, cell_len(self.title)))
        return self.width

    def lines(self) -> Iterator[str]:
        """Return the lines of all cells."""
        for cell in self.cells:
            yield from str(cell).splitlines()


class FittedTable:
    """A table with one row per trial, policy, episode or the like, for `console.print`.

    If it is too wide, names are shortened first, so that they still differ. Columns that are still
    too much are printed as further tables beneath (`fold=True`), or are only named in a line
    beneath, with the width of the terminal at which they appear.

    Args:
        columns: the most important ones first.
        num_keys: number of columns at the start that name the row, and are part of each table.
        legend: list shortened names with their full text beneath.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        title: str = "",
        num_keys: int = 1,
        fold: bool = True,
        legend: bool = True,
    ) -> None:
        self._keys, self._others = list(columns[:num_keys]), list(columns[num_keys:])
        self._title, self._fold, self.legend = title, fold, legend

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield FittedTables(self)

    def render(self, labels: Mapping[str, str], width: int) -> RenderResult:
        """Yield what `console.print` shows, with labels in place of names and without a legend."""
        if self._title:
            yield Text(self._title, style="bold")
        for index, block in enumerate(self.shown(width)):
            if index:
                yield ""
            yield _table(block, labels, width)
        hidden = self._blocks(width)[len(self.shown(width)) :]
        if hidden:
            yield Text(f"Not shown at {width} columns: {self._describe(hidden)}.")

    def shown(self, width: int) -> list[list[Column]]:
        """Return the columns of each table that is printed at a width."""
        blocks = self._blocks(width)
        return blocks if self._fold else blocks[:1]

    def _blocks(self, width: int) -> list[list[Column]]:
        """Divide the columns among tables that fit a width. All start with the key columns."""
        blocks = [list(self._keys)]
        for column in self._others:
            has_more_than_keys = len(blocks[-1]) > len(self._keys)
            if has_more_than_keys and _min_width([*blocks[-1], column]) > width:
                blocks.append(list(self._keys))
            blocks[-1].append(column)
        return blocks

    def _describe(self, hidden: Sequence[Sequence[Column]]) -> str:
        """Return the titles of hidden columns, each with the width at which it appears."""
        texts, num_keys = [], len(self._keys)
        columns = [*self._keys, *self._others]
        for column in itertools.chain.from_iterable(block[num_keys:] for block in hidden):
            needed = _min_width(columns[: columns.index(column) + 1])
            texts.append(f"{column.title} (from {needed})")
        return ", ".join(texts)


class FittedTables:
    """Some tables beneath each other, with the same labels of names and one legend."""

    def __init__(self, *tables: FittedTable) -> None:
        self._tables = tables

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        labels = _labels([block for table in self._tables for block in table.shown(width)], width)
        for table in self._tables:
            yield from table.render(labels, width)
            yield ""
        if any(table.legend for table in self._tables):
            legend = Table.grid(padding=(0, GAP))
            legend.add_column(no_wrap=True)
            legend.add_column(overflow="fold")
            shortened = [(label, name) for name, label in labels.items() if label != name]
            for label, name in shortened:
                legend.add_row(label, name)
            if shortened:
                yield legend
                yield ""


def _min_width(columns: Sequence[Column]) -> int:
    """Return the smallest width of a table with these columns."""
    return sum(column.min_width for column in columns) + GAP * (len(columns) - 1)


def _labels(tables: Sequence[Sequence[Column]], width: int) -> dict[str, str]:
    """Return the longest labels of all names with which each table fits a width."""
    columns = {id(column): column for table in tables for column in table if column.is_name}
    names = [line for column in columns.values() for line in column.lines()]
    longest = max(map(cell_len, names), default=0)
    fitting = (
        candidate
        for candidate in range(longest, MIN_NAME_WIDTH, -1)
        if all(_width_with_labels(table, candidate) <= width for table in tables)
    )
    return short_labels(names, next(fitting, MIN_NAME_WIDTH))


def _width_with_labels(columns: Sequence[Column], label_width: int) -> int:
    """Return the width of a table whose names take at most `label_width` columns."""
    added = sum(
        max(min(column.width, label_width) - column.min_width, 0)
        for column in columns
        if column.is_name
    )
    return _min_width(columns) + added


def _table(columns: Sequence[Column], labels: Mapping[str, str], width: int) -> Table:
    """Return the table with shortened names and wrapped sentences."""
    columns = [_with_labels(column, labels) if column.is_name else column for column in columns]
    spare = width - _min_width(columns)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for column in columns:
        extra = max(0, min(spare, column.width - column.min_width))
        spare -= extra
        table.add_column(column.title, width=column.min_width + extra, overflow="fold")
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table


def _with_labels(column: Column, labels: Mapping[str, str]) -> Column:
    """Return a column with labels in place of its names."""
    cells = [
        Text("\n").join(
            Text(labels[line], style=cell.style if isinstance(cell, Text) else "")
            for line in str(cell).splitlines()
        )
        for cell in column.cells
    ]
    return Column(column.title, cells)
