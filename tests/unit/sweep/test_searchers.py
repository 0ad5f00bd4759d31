"""Searchers: what they accept, and what they learn from earlier trials."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imf_ray.errors import UserError
from imf_ray.sweep import searchers
from imf_ray.sweep.distributions import plain_sample, sample_value, tune_domain
from imf_ray.sweep.search_space import SearchSpace, load_search_space
from imf_ray.sweep.searchers import SearchResult, sample_by_results

SEARCH: dict[str, dict[str, Any]] = {"optuna": {"n_startup_trials": 2}}
SAMPLE: dict[str, dict[str, list[Any]]] = {
    "train.lr": {"loguniform": [1e-5, 1e-1]},
    "train.batch_size": {"randint": [1, 100]},
    "agent.head.n_layer": {"choice": [1, 2, 4]},
    "agent.camera_names": {"choice": [["top"], ["top", "front"]]},
}


def random_results(count: int) -> list[SearchResult]:
    """Return results in which success depends on the learning rate only: 1e-3 is best."""
    rng, results = np.random.default_rng(0), []
    for _ in range(count):
        params = {key: sample_value(spec, rng) for key, spec in SAMPLE.items()}
        success = max(0.0, 1 - abs(math.log10(params["train.lr"]) + 3))
        results.append(SearchResult(params, success, False, [success]))
    return results


def test_a_searcher_samples_near_what_succeeded() -> None:
    results = random_results(40)
    chosen = [sample_by_results(SEARCH, SAMPLE, (0, number), results) for number in range(20)]
    near = [abs(math.log10(params["train.lr"]) + 3) < 0.7 for params in chosen]
    assert np.mean(near) > 0.8  # 0.35 at random
    for params in chosen:
        assert params.keys() == SAMPLE.keys()
        assert 1 <= params["train.batch_size"] < 100
        assert params["agent.head.n_layer"] in (1, 2, 4)
        assert params["agent.camera_names"] in (["top"], ["top", "front"])


def test_samples_depend_only_on_the_results_and_the_seed() -> None:
    results = random_results(6)
    first = sample_by_results(SEARCH, SAMPLE, (0, 6), results)
    assert sample_by_results(SEARCH, SAMPLE, (0, 6), results) == first
    assert sample_by_results(SEARCH, SAMPLE, (1, 6), results) != first
    assert sample_by_results(SEARCH, SAMPLE, (0, 7), results) != first


def test_failed_trials_are_ignored_and_stopped_ones_count_less() -> None:
    """Without any result, samples are random."""
    params = {key: sample_value(spec, np.random.default_rng(1)) for key, spec in SAMPLE.items()}
    failed = SearchResult(params, None, False, [])
    chosen = [
        sample_by_results(SEARCH, SAMPLE, (0, n), 20 * [failed])["train.lr"] for n in range(4)
    ]
    assert len(set(chosen)) == 4
    results = [
        SearchResult(r.params, r.success, r.success == 0.0, r.validations)
        for r in random_results(40)
    ]
    assert any(result.was_stopped for result in results)
    near = [
        abs(math.log10(sample_by_results(SEARCH, SAMPLE, (0, n), results)["train.lr"]) + 3) < 0.7
        for n in range(10)
    ]
    assert np.mean(near) > 0.7


@given(
    st.floats(1e-6, 1e3),
    st.floats(1e-9, 1.0),
    st.sampled_from(["uniform", "loguniform"]),
    st.integers(0, 99),
)
def test_rounded_samples_stay_in_their_domain(
    low: float, width: float, name: str, seed: int
) -> None:
    high = low * (1 + width)
    domain = tune_domain({name: [low, high]})
    value = plain_sample(domain.sample(random_state=np.random.default_rng(seed)), domain)
    assert isinstance(value, float) and low <= value <= high


def test_the_values_of_random_trials_are_known_at_once() -> None:
    space = load_search_space("optuna")
    trials = space.trials()
    assert list(trials) == [f"{number:05d}" for number in range(12)]
    assert [*map(bool, trials.values())] == 4 * [True] + 8 * [False]
    assert list(trials.values())[:4] == space.combinations()[:4]
    without = SearchSpace("random", sample=space.sample, num_samples=2)
    assert all("lr_" in name and params for name, params in without.trials().items())
    assert len(SearchSpace("s", sample=SAMPLE, num_samples=2, search={"optuna": {}}).trials()) == 2


LR = "sample: {train.lr: {loguniform: [1.0e-4, 1.0e-2]}}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("search: {hyperopt: {}}", "must be {optuna: {options}}"),
        ("search: {optuna: 3}", "must be {optuna: {options}}"),
        ("search: [optuna]", "search: .* not a dictionary"),
        ("search: {optuna: {n_trials: 3}}", "optuna has no option n_trials, but n_startup_trials"),
        ("search: {optuna: {n_startup_trials: 0}}", "n_startup_trials=0 must be at least 1"),
        ("search: {optuna: {n_startup_trials: few}}", "n_startup_trials"),
        ("search: {optuna: {multivariate: 3}}", "multivariate"),
    ],
)
def test_invalid_searchers_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"{LR}\n{content}")
    with pytest.raises(UserError, match=message):
        load_search_space(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{LR}\ngrid: {{train.seed: [1, 2]}}", "Replace `grid:` by `sample:` with choice"),
        ("sample: {train.lr: {quniform: [0.1, 0.5, 0.1]}}", "train.lr .* Use uniform, or choice"),
        ("sample: {train.max_steps: {choice: [5, 9]}}", "train.max_steps cannot be searched"),
    ],
)
def test_spaces_that_cannot_be_searched_are_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content + "\nsearch: {optuna: {}}")
    with pytest.raises(UserError, match=message):
        load_search_space(str(path))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searchers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install optuna"):
        load_search_space("optuna")
