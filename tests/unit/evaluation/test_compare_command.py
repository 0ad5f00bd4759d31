"""The command `compare` with evaluations that were made up: its folder, records and report."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imf_ray import cli, compare
from imf_ray.bundled import policy_dir
from imf_ray.evaluation import candidates, tables
from imf_ray.folders import display
from imf_ray.pages.snapshot import SnapshotReader
from imf_ray.rollout.policy_spec import PolicySpec
from tests.helpers.reports import read_report
from tests.unit.pages.test_snapshot_policies import records

OUTCOMES = {"policies/sim_transfer": [4, 4, 4, 2], "policies/sim_transfer_ddim": [4, 0, 1, 2]}


@pytest.fixture
def made_up_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace candidates and their evaluation."""

    def resolve_candidates(specs: list[PolicySpec], *_: Any) -> list[Any]:
        return [
            SimpleNamespace(
                name=name,
                check_rendering=lambda seeds: None,
                evaluation=SimpleNamespace(
                    folder=tmp_path / name, store=SimpleNamespace(finalize=lambda seeds: None)
                ),
            )
            for name in [*(display(spec.local_path) for spec in specs), "expert"]
        ]

    def evaluate(candidate: Any, *_: Any) -> Any:
        return records(candidate.name, OUTCOMES.get(candidate.name, [4, 4, 4, 4]))

    monkeypatch.setattr(candidates, "resolve_candidates", resolve_candidates)
    monkeypatch.setattr(candidates, "claimed", lambda *_: nullcontext())
    monkeypatch.setattr(tables, "evaluate_with_progress", evaluate)
    monkeypatch.setattr(compare, "init_ray", lambda config: None)
    monkeypatch.setattr(compare, "allocate_rollout_actors", lambda *_: None)


@pytest.mark.usefixtures("made_up_evaluations")
def test_a_comparison_writes_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in OUTCOMES:
        assert policy_dir(name)
    output = tmp_path / "out put"
    options = ["evaluate.num_episodes=4", f"compare.output_dir={output}"]
    assert cli.run_command(compare.COMMAND, [*OUTCOMES, *options]) == 0
    assert f"Report: {output}/report.html" in capsys.readouterr().out
    page, sections = read_report(output)
    assert {"results", "pairs", "stages", "setup"} <= sections
    assert "imf-ray compare policies/sim_transfer policies/sim_transfer_ddim" in page
    snapshot = SnapshotReader(output).read()
    assert [row.name for row in snapshot.rows] == list(OUTCOMES)
    assert snapshot.launches[0].wall_s is not None


@pytest.mark.usefixtures("made_up_evaluations")
def test_a_comparison_that_fails_at_once_leaves_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(config: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "init_ray", interrupt)
    options = [f"compare.output_dir={tmp_path / 'output'}"]
    assert cli.run_command(compare.COMMAND, [*OUTCOMES, *options]) == cli.EXIT_INTERRUPTED
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["launches.jsonl"]
