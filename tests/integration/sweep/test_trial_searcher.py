"""The trials that a searcher samples, in a sweep whose results this test writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from imf_ray.allocation import RolloutResources, RunResources
from imf_ray.pages.snapshot import SnapshotReader
from imf_ray.rollout.records import SUCCESS_RATE
from imf_ray.sweep.prepare import Sweep, prepare_sweep
from imf_ray.sweep.search_space import SearchSpace
from imf_ray.sweep.sweep_dir import SweepDir
from imf_ray.sweep.trial import TrialSpec
from imf_ray.sweep.trial_record import FAILED, FINISHED, TrialRecord
from imf_ray.sweep.trial_searcher import TrialSearcher
from tests.helpers.configs import TINY_AGENT, TINY_TRAINING

NUM_TRIALS = 12
INVALID_WIDTH = 31
"""The head cannot have this width, because it has two attention heads."""
SPACE = SearchSpace(
    "searched",
    sample={
        "train.lr": {"loguniform": [1e-4, 1e-2]},
        "agent.head.n_emb": {"choice": [32, 16]},
    },
    num_samples=NUM_TRIALS,
    search={"optuna": {"n_startup_trials": 3}},
)


class Session:
    """One start of a sweep, whose trials have a result at once."""

    def __init__(self, space: SearchSpace, folder: Path, demonstrations: Path) -> None:
        options = [
            *(o for o in (*TINY_AGENT, *TINY_TRAINING) if not o.startswith("agent.head.n_emb")),
            "agent=resnet_imf_attnres_multitoken",
            f"data.dataset_dir={demonstrations}",
        ]
        self.sweep: Sweep = prepare_sweep(space, options, SweepDir(folder))
        self.searcher = TrialSearcher(self.sweep, self._spec)

    def _spec(self, name: str) -> TrialSpec:
        sweep = self.sweep
        resources = RunResources(1, 1, 1.0, 0.0, RolloutResources(1, 1.0, 0.0))
        return TrialSpec(name, sweep.params[name], sweep.configs[name], resources, sweep.sweep_dir)

    def run_next(self, ends: bool = True) -> str | None:
        """Return the name of the next trial, which ends with a success rate, or None."""
        suggested: Any = self.searcher.suggest("")
        if suggested == Searcher.FINISHED:
            return None
        name = suggested["trial"]
        params = self.sweep.params[name]
        if ends:
            success = 100 * params["train.lr"] - (params["agent.head.n_emb"] == 16) * 0.01
            record = TrialRecord(name, params, FINISHED, {SUCCESS_RATE: success})
            self.sweep.sweep_dir.trial(name).write_record(record)
        return name

    def run(self) -> list[str]:
        """Run all trials, and return the names of those that started."""
        return list(iter(self.run_next, None))


@pytest.mark.usefixtures("ray_cluster")
def test_a_resumed_sweep_samples_the_same_trials(demonstrations: Path, tmp_path: Path) -> None:
    """The driver dies while the sixth trial runs, and is asked to stop during the eighth."""
    whole = Session(SPACE, tmp_path / "whole", demonstrations)
    names = [f"{number:05d}" for number in range(NUM_TRIALS)]
    assert whole.run() == names
    chosen = [whole.sweep.params[name]["train.lr"] for name in names]
    assert len(set(chosen)) == NUM_TRIALS

    folder = tmp_path / "resumed"
    first = Session(SPACE, folder, demonstrations)
    assert [first.run_next(ends=number < 5) for number in range(6)] == names[:6]
    rows = SnapshotReader(folder).read().rows
    assert sorted(row.name for row in rows) == names
    assert sum("train.lr" in row.params for row in rows) == 6

    second = Session(SPACE, folder, demonstrations)
    assert second.sweep.is_resumed and second.sweep.params[names[5]] == first.sweep.params[names[5]]
    assert [second.run_next(ends=number < 7) for number in range(8)] == names[:8]
    second.sweep.sweep_dir.request_stop()
    assert second.run_next() is None and not second.sweep.params[names[8]]

    third = Session(SPACE, folder, demonstrations)
    third.sweep.sweep_dir.clear_stop()
    assert third.run() == names
    assert third.sweep.params == whole.sweep.params
    assert [trial.read_record() for trial in third.sweep.trial_dirs.values()] == [
        trial.read_record() for trial in whole.sweep.trial_dirs.values()
    ]


@pytest.mark.usefixtures("ray_cluster")
def test_options_that_do_not_fit_together_fail_one_trial(
    demonstrations: Path, tmp_path: Path
) -> None:
    """Random trials are checked before the sweep starts; here, the only one is valid."""
    sample = {
        "train.lr": {"loguniform": [1e-4, 1e-2]},
        "agent.head.n_emb": {"choice": [32, 16, INVALID_WIDTH]},
    }
    space = SearchSpace(
        "searched",
        sample=sample,
        num_samples=NUM_TRIALS,
        search={"optuna": {"n_startup_trials": 1}},
        seed=0,
    )
    session = Session(space, tmp_path / "sweep", demonstrations)
    started = session.run()
    records = [trial.read_record() for trial in session.sweep.trial_dirs.values()]
    failed = [record for record in records if record is not None and record.status == FAILED]
    assert failed and len(failed) + len(started) == NUM_TRIALS
    for record in failed:
        assert record.params["agent.head.n_emb"] == INVALID_WIDTH
        assert record.error is not None and f"Trial {record.name}" in record.error
    resumed = Session(space, tmp_path / "sweep", demonstrations)
    assert resumed.sweep.params == session.sweep.params
