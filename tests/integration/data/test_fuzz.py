"""A few damaged files of each kind. `benchmarks.fuzz_episodes` checks a thousand."""

from pathlib import Path

from testing_support.episode_fuzzer import GOOD, KINDS, MUTATIONS, fuzz


def test_damaged_files_are_read_unchanged_or_refused(tmp_path: Path) -> None:
    outcomes = fuzz(tmp_path, 2 * len(KINDS) * len(MUTATIONS), seed=1)
    wrong = [outcome for outcome in outcomes if outcome[2] not in GOOD]
    assert not wrong
    unchanged = {name for _, name, outcome in outcomes if outcome == "equal"}
    refused = {name for _, name, outcome in outcomes if outcome == "refused"}
    assert "append_bytes" in unchanged - refused  # bytes after the HDF5 contents are not read
    assert {mutation.__name__ for mutation in MUTATIONS} == unchanged | refused
