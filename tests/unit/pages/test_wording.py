"""The sentences of a page."""

from dataclasses import replace

import pytest

from imf_ray.pages.formats import (
    duration_text,
    number_text,
    relative_url,
    size_text,
    time_text,
    value_text,
)
from imf_ray.pages.model import Curve, Row, Snapshot, State
from imf_ray.pages.wording import (
    biggest_drop,
    differences,
    failures,
    headline,
    option_effects,
    rise,
    state_counts,
)
from tests.helpers.snapshots import (
    STAGE_NAMES,
    TRACEBACK,
    comparison_snapshot,
    make_row,
    make_success,
    random_snapshot,
    run_snapshot,
    storage_snapshot,
    sweep_snapshot,
)


def _sweep(*rates: float, episodes: int = 100) -> Snapshot:
    rows = [
        replace(make_row(number, {}, rate), success=make_success(rate, episodes), curves=())
        for number, rate in enumerate(rates)
    ]
    return replace(sweep_snapshot(), rows=rows, baselines=(), state=State.FINISHED)


def _text(snapshot: Snapshot) -> str:
    result = headline(snapshot)
    return " ".join([result.main, *result.details])


def test_headline_names_the_best_with_interval_and_episodes() -> None:
    result = headline(sweep_snapshot())
    assert result.main == "Best: trial 00002 with success 0.78 [0.69, 0.85] in 100 episodes."


def test_headline_says_whether_the_interval_separates_the_best() -> None:
    assert "overlaps that of the second, trial 00001 (0.71" in _text(_sweep(0.78, 0.71))
    assert "do not show which of the two is better" in _text(_sweep(0.78, 0.71))
    clear = _text(_sweep(0.78, 0.31))
    assert (
        "lies above that of the second, trial 00001 (0.31 [0.23, 0.41]): the difference is clear"
        in clear
    )
    assert "overlap" not in clear


def test_headline_counts_further_trials_that_overlap() -> None:
    assert "The intervals of 2 further trials overlap that of the best, too." in _text(
        _sweep(0.78, 0.75, 0.74, 0.72)
    )
    assert "The interval of 1 further trial overlaps that of the best, too." in _text(
        _sweep(0.78, 0.75, 0.74, 0.1)
    )


def test_headline_warns_that_the_best_was_chosen_by_its_own_episodes() -> None:
    assert "The best of 2 trials was chosen by these same episodes" in _text(_sweep(0.78, 0.31))
    assert "chosen" not in _text(_sweep(0.78))


def test_headline_compares_with_expert_and_untrained() -> None:
    text = _text(sweep_snapshot())
    assert "lies below that of the expert (1.00 [0.96, 1.00])" in text
    assert "lies above that of the untrained policy (0.00 [0.00, 0.04])" in text


def test_headline_of_a_comparison_uses_the_paired_test() -> None:
    text = _text(comparison_snapshot())
    assert (
        "Against the second, sim_transfer_ddim (0.83 [0.74, 0.89]): sim_transfer is better." in text
    )
    assert "the difference is +0.14 [+0.06, +0.22], p = 0.0004." in text
    pairs = [
        replace(
            pair, a=pair.b, b=pair.a, difference=-pair.difference, low=-pair.high, high=-pair.low
        )
        for pair in comparison_snapshot().pairs
    ]
    assert "the difference is +0.14 [+0.06, +0.22]" in _text(
        replace(comparison_snapshot(), pairs=pairs)
    )


def test_headline_without_any_success() -> None:
    assert headline(_sweep(0.0, 0.0)).main == (
        "No trial has succeeded in any episode; trial 00000 has the smallest action error, 0.08."
    )
    rows = [Row("a", "a", State.RUNNING), Row("b", "b", State.PENDING)]
    snapshot = replace(_sweep(), rows=rows, state=State.RUNNING)
    assert headline(snapshot).main == "No trial has a success rate yet: 1 pending, 1 running."
    assert headline(replace(snapshot, rows=[])).main == "There is no trial yet."


def test_headline_of_a_run() -> None:
    assert headline(run_snapshot()).main == (
        "Success 0.82 [0.73, 0.88] in 100 episodes, at step 900."
    )
    row = Row("a", "a", State.RUNNING, step=300, max_steps=1200, time_left_s=100.0)
    snapshot = replace(run_snapshot(), rows=[row], state=State.RUNNING)
    assert _text(snapshot) == (
        "The run is running, without a success rate. Running at step 300 of 1,200, 1 min 40 s left."
    )


def test_headline_of_a_storage_folder_does_not_rank_different_tasks() -> None:
    snapshot = storage_snapshot(12)
    best = max(snapshot.rows, key=lambda row: row.success.rate if row.success else 0.0)
    text = _text(replace(snapshot, rows=list(reversed(snapshot.rows))))
    assert f": {best.label}." in text
    assert "imf-ray compare" in text


def test_rise_says_when_success_rose() -> None:
    curve = Curve("rollout/success_rate", [100, 200, 300, 400], [0.0, 0.1, 0.7, 0.6])
    row = Row("a", "a", State.FINISHED, curves=[curve])
    assert rise(row) == (
        "Its success rate rose most between steps 200 and 300 (0.10 to 0.70). It was never higher."
    )
    later = replace(row, curves=[replace(curve, values=[0.0, 0.5, 0.5, 0.6])])
    assert rise(later).endswith("(0.00 to 0.50) and was highest at step 400 (0.60).")
    early = replace(row, curves=[replace(curve, values=[0.5, 0.6, 0.8, 0.7])])
    assert rise(early).startswith("Its success rate was 0.50 at step 100, rose most between")
    flat = replace(row, curves=[replace(curve, values=[0.1, 0.1, 0.1, 0.0])])
    assert rise(flat) == "Its success rate did not rise between steps 100 and 400."
    assert rise(replace(row, curves=())) == ""


def test_failures_are_grouped_and_summarized() -> None:
    rows = random_snapshot(64).rows
    (failure,) = failures(rows, {row.name: row.label for row in rows})
    assert len(failure.labels) == 5
    assert failure.summary == TRACEBACK.splitlines()[-1]
    assert failure.text == TRACEBACK
    silent = Row("a", "a", State.FAILED)
    assert "No reason" in failures([silent], {"a": "a"})[0].summary


def test_differences_name_the_options_in_which_two_rows_differ() -> None:
    a, b = make_row(0, {"x": 1, "y": 2}, 0.5), make_row(1, {"x": 1, "y": 3, "z": "q"}, 0.4)
    assert differences(a, b, {"x": "x", "y": "y"}) == [("y", "2", "3"), ("z", "not set", "q")]


def test_effects_are_means_over_the_rows_with_one_value() -> None:
    rows = [make_row(n, {"x": n % 2}, rate) for n, rate in enumerate((0.2, 0.6, 0.4, 0.8))]
    assert [(e.value, e.num_rows, round(e.mean, 2), e.best) for e in option_effects(rows, "x")] == [
        ("1", 2, 0.7, 0.8),
        ("0", 2, 0.3, 0.4),
    ]


def test_biggest_drop_names_the_stage_that_most_failed_episodes_miss() -> None:
    row = replace(make_row(0, {}, 0.5), stages=(0.9, 0.8, 0.3, 0.3))
    assert biggest_drop(row, STAGE_NAMES) == (
        f"71% of the episodes of 00000 that fail do not reach “{STAGE_NAMES[2]}”: the share falls "
        "from 0.80 to 0.30."
    )
    assert "Every episode" in biggest_drop(replace(row, stages=(1.0,) * 4), STAGE_NAMES)
    assert biggest_drop(replace(row, stages=()), STAGE_NAMES) == ""


def test_states_are_counted() -> None:
    counts = state_counts(sweep_snapshot().rows)
    assert counts == {State.FINISHED: 4, State.STOPPED: 1, State.FAILED: 1}


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-1, "0 s"),
        (45.4, "45 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations(seconds: float, expected: str) -> None:
    assert duration_text(seconds) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.03123, "0.0312"),
        (12400.4, "12,400"),
        (1e-6, "1e-6"),
        (1e30, "1e30"),
        (float("nan"), "nan"),
        (0, "0"),
    ],
)
def test_numbers(value: float, expected: str) -> None:
    assert number_text(value) == expected


def test_values_sizes_times_and_addresses() -> None:
    assert [value_text(v) for v in ("a b", 1e-4, True, None, [1, 2])] == [
        "a b",
        "0.0001",
        "true",
        "null",
        "[1, 2]",
    ]
    assert (size_text(1), size_text(320_000), size_text(1_400_000)) == ("1 kB", "320 kB", "1.4 MB")
    assert time_text(1_796_044_800) == "2026-11-30 13:20:00 UTC"
    assert relative_url("a:b/c d.mp4") == "./a%3Ab/c%20d.mp4"
