"""Scales, colours and charts of a page."""

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from imf_ray.pages import charts_curves, charts_options, charts_success
from imf_ray.pages.charts import (
    ERROR_COLORS,
    SUCCESS_COLORS,
    Scale,
    color_at,
    contrast,
    make_scale,
    path,
    row_key,
    text_color,
)
from imf_ray.pages.model import Curve, Row, State
from tests.helpers.snapshots import (
    BASELINES,
    comparison_snapshot,
    make_row,
    make_success,
    random_snapshot,
    sweep_snapshot,
)


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("colors", [SUCCESS_COLORS, ERROR_COLORS])
def test_text_is_legible_on_every_colour_of_a_heat_map(colors: tuple[str, ...]) -> None:
    for step in range(401):
        background = color_at(colors, step / 400)
        assert contrast(text_color(background), background) >= 4.5


def test_cells_of_a_heat_map_use_legible_text() -> None:
    snapshot = sweep_snapshot()
    maps = charts_success.heat_maps(snapshot.rows, dict(snapshot.varied))
    cells = [cell for heat_map in maps for _, row in heat_map.rows for cell in row if cell]
    assert len(cells) == 12
    for cell in cells:
        assert not cell.background or contrast(cell.color, cell.background) >= 4.5
    legend = [entry for heat_map in maps for entry in heat_map.legend]
    assert all(contrast(color, background) >= 4.5 for _, background, color in legend)


def test_heat_map_puts_each_row_into_the_cell_of_its_values() -> None:
    snapshot = sweep_snapshot()
    success, error = charts_success.heat_maps(snapshot.rows, dict(snapshot.varied))
    assert (success.row_option, success.column_option) == ("n_emb", "n_layer")
    assert list(success.columns) == ["2", "4", "6"]
    texts = {value: [cell.value for cell in cells if cell] for value, cells in success.rows}
    assert texts == {"64": ["0.31", "0.52", "0.78"], "128": ["0.40", "0.71", "failed"]}
    assert error.rows[1][1][2] is not None
    assert error.rows[1][1][2].value == "failed"


def test_scale_is_logarithmic_only_over_a_wide_range_of_positive_values() -> None:
    assert make_scale([0.001, 1.0], 0, 100).is_log
    assert not make_scale([0.5, 1.0], 0, 100).is_log
    assert not make_scale([-1.0, 1000.0], 0, 100).is_log
    scale = make_scale([1.0, 100.0, math.inf, math.nan], 0, 100)
    assert scale(10.0) == pytest.approx(50)


@pytest.mark.parametrize("values", [[], [0.0], [3.0, 3.0], [1e-9, 1e30], [1, 2], [-5, 1e6]])
def test_scale_has_a_few_ticks_inside_it(values: list[float]) -> None:
    scale = make_scale(values, 0, 100)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 12
    assert all(-1e-6 <= scale(tick) <= 100 + 1e-6 for tick in ticks)


def test_ticks_are_round_numbers() -> None:
    assert Scale(0, 1, 0, 100).ticks(4) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert Scale(0, 1200, 0, 100).ticks(5) == [0, 250, 500, 750, 1000]


def test_path_has_a_gap_at_values_that_are_not_finite() -> None:
    assert path([(0, 1.04), (1, math.nan), (2, 3), (4, 5)]) == "M0 1M2 3L4 5"


def test_thinning_keeps_peaks_and_ends() -> None:
    values = [0.0] * 1000
    values[333] = 9.0
    values[700] = math.nan
    indices = charts_curves.thin(values, 50)
    assert len(indices) <= 50
    assert {0, 333, 999} <= set(indices)
    assert indices == sorted(indices)
    assert charts_curves.thin([1.0, 2.0], 50) == [0, 1]


def test_curves_of_the_best_ten_rows_are_shown_first() -> None:
    rows = charts_curves.rows_with_curves(random_snapshot(64).rows)
    labels = {row.name: row.label for row in rows}
    legend = charts_curves.legend(rows, labels)
    assert [entry.is_shown for entry in legend] == [True] * 10 + [False] * 54
    assert len({entry.style for entry in legend[:30]}) == 30
    (success, *_) = charts_curves.curve_charts(rows, BASELINES)
    assert success.metric == charts_curves.SUCCESS_METRIC
    assert success.svg.count(" off") == 54


def test_a_diverged_row_does_not_stretch_the_axis_of_the_others() -> None:
    good = Row("a", "a", State.FINISHED, curves=[Curve("loss", [1, 2], [0.5, 0.4])])
    bad = Row("b", "b", State.FAILED, curves=[Curve("loss", [1, 2], [0.5, 1e30])])
    (chart,) = charts_curves.curve_charts([good, bad], ())
    high = float(re.findall(r'data-y="\S+ (\S+)', chart.svg)[0])
    assert high < 1
    assert charts_curves.curve_charts([bad], ())


def test_curves_without_a_finite_value_are_left_out() -> None:
    row = Row("a", "a", State.FAILED, curves=[Curve("loss", [1, 2], [math.nan, math.inf])])
    assert charts_curves.curve_charts([row], ()) == []


def test_charts_are_well_formed_and_described() -> None:
    snapshot, comparison = random_snapshot(20), comparison_snapshot()
    varied = dict(snapshot.varied)
    charts = [
        charts_success.whisker_plot(snapshot.rows, BASELINES),
        charts_success.whisker_plot(snapshot.rows[:5], BASELINES),
        charts_success.pair_plot(comparison.pairs, {}),
        charts_options.parallel_lines(snapshot.rows, varied),
        *(plot for _, plot in charts_options.scatter_plots(snapshot.rows, varied)),
        *(chart.svg for chart in charts_curves.curve_charts(snapshot.rows, BASELINES)),
    ]
    for chart in charts:
        svg = ElementTree.fromstring(chart)
        assert svg.find("title") is not None
        assert svg.find("desc") is not None
        assert "nan" not in chart
        assert not re.search(r"\d\.\d{2}", " ".join(re.findall(r' d="([^"]*)"', chart)))


@pytest.mark.parametrize("num", [3, 40])
def test_whiskers_have_a_mark_for_each_evaluated_row(num: int) -> None:
    rows = [make_row(number, {}, number / num) for number in range(num)]
    rows.append(replace(rows[0], name="pending", success=None))
    chart = charts_success.whisker_plot(rows, BASELINES)
    assert all(f'data-r="{row_key(row.name)}"' in chart for row in rows[:-1])
    assert row_key("pending") not in chart
    assert charts_success.whisker_plot(rows[-1:], BASELINES) == ""


def test_baselines_of_one_rate_share_a_line() -> None:
    lines = charts_success.reference_lines(
        [replace(row, success=make_success(0)) for row in BASELINES]
    )
    assert lines == [(0.0, "expert, untrained")]
    assert charts_success.reference_lines(BASELINES) == [(0.0, "untrained"), (1.0, "expert")]


def test_labels_in_charts_differ() -> None:
    rows = [replace(make_row(0, {}, 1), name=f"runs/a/{i}/checkpoint", label="x") for i in range(3)]
    assert len(set(charts_success.chart_labels(rows).values())) == 3


def test_values_of_options_are_sorted_as_numbers_before_texts() -> None:
    assert charts_success.sorted_values([10, 9, "b", 2.5, "a", True, None]) == [
        "2.5",
        "9",
        "10",
        "a",
        "b",
        "null",
        "true",
    ]


def test_options_with_strange_values_have_a_scatter() -> None:
    rows = [
        make_row(number, {"x": value}, 0.5)
        for number, value in enumerate([1, "two", None, [3, 4], math.nan, math.inf, {"a": 1}])
    ]
    ((_, chart),) = charts_options.scatter_plots(rows, {"x": "x"})
    assert all(f'data-r="{row_key(row.name)}"' in chart for row in rows)
