"""Tables that fit the width they are printed at."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from imf_ray.tables import Column, FittedTable, FittedTables

NAMES = [f"s3://bucket/研究/runs/{number:05d}-n_emb_96-größe/checkpoint" for number in range(4)]
SENTENCE = (
    "The difference is not significant. If it is real, about 167 more episodes would show it."
)


def printed(table: FittedTable | FittedTables, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    return [line.rstrip() for line in console.export_text().splitlines()]


def table(num_columns: int, fold: bool = True, legend: bool = True) -> FittedTable:
    columns = [Column("policy", NAMES, is_name=True)]
    columns += [
        Column(f"column {i}", [f"{i}.{row}" for row in range(4)]) for i in range(num_columns)
    ]
    columns.append(Column("verdict", [SENTENCE] * 4, is_sentence=True))
    return FittedTable(columns, "A title", fold=fold, legend=legend)


@settings(max_examples=30, deadline=None)
@given(width=st.integers(45, 240), num_columns=st.integers(0, 14))
def test_everything_is_printed_at_every_width(width: int, num_columns: int) -> None:
    lines = printed(table(num_columns), width)
    assert all(cell_len(line) <= width for line in lines)
    words = " ".join(lines).split()
    for column in range(num_columns):
        assert all(words.count(f"{column}.{row}") == 1 for row in range(4))
    text = "".join(lines).replace(" ", "")
    assert all(name in text for name in NAMES)
    assert text.count("difference") == 4


def test_a_table_that_fits_is_left_alone() -> None:
    lines = printed(table(1), 240)
    assert [line.split()[0] for line in lines[3:7]] == NAMES
    assert all(line.endswith(SENTENCE) for line in lines[3:7])
    assert "…" not in "".join(lines) and lines[0] == "A title"


def test_names_keep_their_labels_in_further_tables() -> None:
    lines = printed(table(10), 80)
    heads = [index for index, line in enumerate(lines) if line.startswith("policy ")]
    assert len(heads) > 1
    labels = [[lines[head + 2 + row].split()[0] for row in range(4)] for head in heads]
    assert labels[0] == labels[1] and len(set(labels[0])) == 4
    legend = {line.split()[0] for line in lines[heads[-1] :] if "s3://" in line}
    assert legend == set(labels[0])


def test_hidden_columns_are_named_with_the_width_at_which_they_appear() -> None:
    lines = printed(table(6, fold=False, legend=False), 50)
    note = " ".join(lines).partition("Not shown at 50 columns: ")[2]
    assert note.startswith("column 3 (from 55), column 4 (from 65), ")
    assert "column 3" in printed(table(6, fold=False), 55)[1]
    assert "column 3" not in printed(table(6, fold=False), 54)[1]
    assert not any("s3://" in line for line in lines)


def test_styles_of_cells_stay() -> None:
    column = Column(
        "state", [Text("failed", style="red"), Text("x" * 40, style="green")], is_name=True
    )
    console = Console(width=30, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(FittedTable([column], legend=False))
    assert "\x1b[31mfailed" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[32mxxxx" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [60, 80])
def test_tables_together_have_one_legend(width: int) -> None:
    lines = printed(FittedTables(table(1), table(8)), width)
    legend = [line for line in lines if "s3://" in line]
    assert len(legend) == len(NAMES)
    words = " ".join(lines).split()
    for label in (line.split()[0] for line in legend):
        assert words.count(label) > 2
