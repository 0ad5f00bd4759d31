"""The sentences of a page: the best row and how sure that is, when success rose, what differs."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from imf_ray.pages.charts import row_key
from imf_ray.pages.charts_curves import SUCCESS_METRIC
from imf_ray.pages.formats import (
    count_text,
    duration_text,
    number_text,
    success_text,
    value_text,
)
from imf_ray.pages.model import Pair, Row, Snapshot, State, Success

ROW_NOUNS = {
    "sweep": "trial",
    "comparison": "policy",
    "evaluation": "policy",
    "run": "run",
    "storage": "run",
}


@dataclass(frozen=True)
class Headline:
    """The result of a page in words."""

    main: str
    details: Sequence[str]


def row_noun(snapshot: Snapshot) -> str:
    """Return the noun for a row of the page, such as `trial`."""
    return ROW_NOUNS.get(snapshot.kind, "row")


def rows_text(count: int, noun: str) -> str:
    """Return a number of rows, such as `1 policy` or `64 trials`."""
    return f"{count:,} {noun if count == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Return the plural of a noun of `row_noun`."""
    return f"{noun.removesuffix('y')}ies" if noun.endswith("y") else f"{noun}s"


def _named(row: Row, noun: str) -> str:
    """Return the label of a row; a number follows its noun, such as `trial 14`."""
    return f"{noun} {row.label}" if row.label.isdigit() else row.label


def state_counts(rows: Sequence[Row]) -> dict[State, int]:
    """Return the number of rows in each state that occurs."""
    counts = collections.Counter(row.state for row in rows)
    return {state: counts[state] for state in State if counts[state]}


def headline(snapshot: Snapshot) -> Headline:
    """Return which row is best, its success rate, and whether its interval separates it."""
    noun = row_noun(snapshot)
    ranked = [row for row in snapshot.rows if row.success is not None]
    if not ranked or ranked[0].success is None:
        return _without_success(snapshot, noun)
    best, success = ranked[0], ranked[0].success
    result = _result(success)
    details = []
    if len(snapshot.rows) == 1 and snapshot.kind != "storage":
        main = f"{result[0].upper()}{result[1:]}"
        if best.step is not None and not snapshot.is_active:
            main += f", at step {best.step:,}"
        details += _progress(best)
    elif snapshot.kind == "storage":
        best, success = max(
            ((row, row.success) for row in ranked if row.success is not None),
            key=lambda item: item[1].rate,
        )
        main = f"Highest {_result(success)}: {best.label}"
        details.append("Rows may differ in task, data and episodes; imf-ray compare tests them.")
    else:
        so_far = " so far" if snapshot.is_active else ""
        main = f"Best{so_far}: {_named(best, noun)} with {result}"
        if success.rate == 0.0:
            main = f"No {noun} has succeeded in any episode{so_far}"
            if best.action_error is not None:
                error = number_text(best.action_error)
                main += f"; {_named(best, noun)} has the smallest action error, {error}"
        details += _against_others(snapshot, ranked, noun)
    if snapshot.kind != "storage":
        details += _against_baselines(best, snapshot.baselines)
        details += [sentence for sentence in (rise(best),) if sentence]
    if snapshot.kind == "sweep" and len(ranked) > 1 and success.rate > 0:
        details.append(
            f"The best of {rows_text(len(ranked), noun)} was chosen by these same episodes, so its "
            "true rate is probably lower. Evaluate it on new episodes to see."
        )
    return Headline(f"{main}.", details)


def _result(success: Success) -> str:
    return f"success {success_text(success)} in {count_text(success.episodes, 'episode')}"


def _without_success(snapshot: Snapshot, noun: str) -> Headline:
    """Return the headline of a page without a success rate."""
    counts = ", ".join(f"{count} {state}" for state, count in state_counts(snapshot.rows).items())
    if not snapshot.rows:
        return Headline(f"There is no {noun} yet.", [])
    if len(snapshot.rows) == 1 and snapshot.kind != "storage":
        row = snapshot.rows[0]
        error = f" Its action error is {number_text(row.action_error)}." if row.action_error else ""
        main = f"The {noun} is {row.state}, without a success rate.{error}"
        return Headline(main, _progress(row))
    ranked = [row for row in snapshot.rows if row.action_error is not None]
    details = []
    if ranked and ranked[0].action_error is not None:
        error = number_text(ranked[0].action_error)
        details.append(f"The smallest action error has {_named(ranked[0], noun)}: {error}.")
    return Headline(f"No {noun} has a success rate yet: {counts}.", details)


def _progress(row: Row) -> list[str]:
    """Return the progress of a row that trains."""
    if row.state not in (State.RUNNING, State.STALLED) or row.step is None:
        return []
    sentence = f"{str(row.state).capitalize()} at step {row.step:,}"
    if row.max_steps:
        sentence += f" of {row.max_steps:,}"
    if row.time_left_s is not None:
        sentence += f", {duration_text(row.time_left_s)} left"
    return [f"{sentence}."]


def _against_others(snapshot: Snapshot, ranked: Sequence[Row], noun: str) -> list[str]:
    """Return whether the best row is separated from the others."""
    if len(ranked) < 2 or ranked[0].success is None or ranked[1].success is None:
        return []
    best, second = ranked[0], ranked[1]
    pair = _pair(snapshot.pairs, best.name, second.name)
    named = f"{_named(second, noun)} ({success_text(ranked[1].success)})"
    if pair is not None:
        sign = 1 if pair.a == best.name else -1
        low, high = sorted((sign * pair.low, sign * pair.high))
        return [
            f"Against the second, {named}: {pair.verdict}. On the same episodes the difference is "
            f"{sign * pair.difference:+.2f} [{low:+.2f}, {high:+.2f}], p = {pair.p_value:.2g}."
        ]
    overlapping = [
        row for row in ranked[1:] if row.success and row.success.high >= ranked[0].success.low
    ]
    if not overlapping:
        return [f"Its interval lies above that of the second, {named}: the difference is clear."]
    if second in overlapping:
        sentences = [
            f"Its interval overlaps that of the second, {named}: these episodes alone do not show "
            "which of the two is better."
        ]
    else:
        sentences = [f"Its interval lies above that of the second, {named}."]
    others = len(overlapping) - (second in overlapping)
    if others:
        subject, verb = ("interval", "overlaps") if others == 1 else ("intervals", "overlap")
        rows = rows_text(others, f"further {noun}")
        sentences.append(f"The {subject} of {rows} {verb} that of the best, too.")
    return sentences


def _pair(pairs: Sequence[Pair], a: str, b: str) -> Pair | None:
    return next((pair for pair in pairs if {pair.a, pair.b} == {a, b}), None)


def _against_baselines(best: Row, baselines: Sequence[Row]) -> list[str]:
    """Return how the best row compares with the expert and the untrained policy."""
    parts = [
        f"{_relation(best.success, row.success)} the {row.label}"
        f"{' policy' if row.label == 'untrained' else ''} ({success_text(row.success)})"
        for row in baselines
        if row.success is not None and best.success is not None and row.name != best.name
    ]
    return [f"Its interval {' and '.join(parts)}."] if parts else []


def _relation(a: Success, b: Success) -> str:
    if a.low > b.high:
        return "lies above that of"
    if a.high < b.low:
        return "lies below that of"
    return "overlaps that of"


def rise(row: Row) -> str:
    """Return when the success rate of a row rose, in one sentence; empty without a curve."""
    curve = next((curve for curve in row.curves if curve.metric == SUCCESS_METRIC), None)
    if curve is None or len(curve.steps) < 2:
        return ""
    points = list(zip(curve.steps, curve.values, strict=True))
    (start, before), (end, after) = max(
        itertools.pairwise(points), key=lambda pair: pair[1][1] - pair[0][1]
    )
    top_step, top = max(points, key=lambda point: point[1])
    if after <= before:
        return (
            f"Its success rate did not rise between steps {points[0][0]:,} and {points[-1][0]:,}."
        )
    first_step, first = points[0]
    begin = f"was {first:.2f} at step {first_step:,}, " if first > after - before else ""
    sentence = (
        f"Its success rate {begin}rose most between steps {start:,} and {end:,} "
        f"({before:.2f} to {after:.2f})"
    )
    if top_step == end:
        return f"{sentence}. It was never higher."
    return f"{sentence} and was highest at step {top_step:,} ({top:.2f})."


@dataclass(frozen=True)
class OptionEffect:
    """The rows with one value of a varied option."""

    value: str
    num_rows: int
    mean: float
    """Mean success rate."""
    best: float


def option_effects(rows: Sequence[Row], option: str) -> list[OptionEffect]:
    """Return the mean and best success rate for each value of an option, best mean first."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        if row.success is not None and option in row.params:
            groups.setdefault(value_text(row.params[option]), []).append(row.success.rate)
    effects = [
        OptionEffect(value, len(rates), sum(rates) / len(rates), max(rates))
        for value, rates in groups.items()
    ]
    return sorted(effects, key=lambda effect: -effect.mean)


def differences(a: Row, b: Row, varied: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return option, value of A and value of B for each varied option in which two rows differ."""
    values = [
        (option, _param(a, option), _param(b, option))
        for option in dict.fromkeys([*varied, *a.params, *b.params])
    ]
    return [(option, x, y) for option, x, y in values if x != y]


def _param(row: Row, option: str) -> str:
    return value_text(row.params[option]) if option in row.params else "not set"


@dataclass(frozen=True)
class Failure:
    """Rows that failed for one reason."""

    labels: Sequence[tuple[str, str]]
    """Key and label of each row."""
    summary: str
    """The first line of the reason, or the last one of a traceback, which names the exception."""
    text: str
    """The whole reason; empty if it is the summary."""


def failures(rows: Sequence[Row], labels: Mapping[str, str]) -> list[Failure]:
    """Return the reasons of all failures, each with the rows that it concerns."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.error or row.state == State.FAILED:
            reason = (row.error or "").strip() or "No reason was recorded; see its log."
            groups.setdefault(reason, []).append(row)
    return [
        Failure(
            [(row_key(row.name), labels[row.name]) for row in group],
            text.splitlines()[-1 if text.startswith("Traceback") else 0].strip(),
            text if "\n" in text else "",
        )
        for text, group in groups.items()
    ]


def biggest_drop(row: Row, stage_names: Sequence[str]) -> str:
    """Return which stage most failed episodes of a row do not reach; empty without stages."""
    if len(row.stages) != len(stage_names) or not row.stages:
        return ""
    shares = [1.0, *row.stages]
    losses = [before - after for before, after in itertools.pairwise(shares)]
    index = max(range(len(losses)), key=losses.__getitem__)
    if losses[index] <= 0:
        return f"Every episode of {row.label} reached the last stage."
    share = losses[index] / (1.0 - shares[-1])
    return (
        f"{share:.0%} of the episodes of {row.label} that fail do not reach "
        f"\u201c{stage_names[index]}\u201d: the share falls from {shares[index]:.2f} to "
        f"{shares[index + 1]:.2f}."
    )
