"""Each kind of damage, a few times (benchmarks/fuzz_episodes.py does a thousand)."""

from pathlib import Path

from benchmarks.fuzz_episodes import GOOD, KINDS, MUTATIONS, fuzz


def test_damaged_files_are_read_as_they_were_or_refused(tmp_path: Path) -> None:
    outcomes = fuzz(tmp_path, 2 * len(KINDS) * len(MUTATIONS), seed=1)
    wrong = [outcome for outcome in outcomes if outcome[2] not in GOOD]
    assert not wrong
    kept = {name for _, name, outcome in outcomes if outcome == "equal"}
    refused = {name for _, name, outcome in outcomes if outcome == "refused"}
    assert "append_bytes" in kept - refused  # what stands behind the contents is not read
    assert {mutation.__name__ for mutation in MUTATIONS} == kept | refused
