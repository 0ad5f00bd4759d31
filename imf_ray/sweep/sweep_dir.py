"""The folder of one sweep: its files, and their synchronization with a URL."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imf_ray.aliases import BASELINES_FILES, METRICS, SWEEP_KEYS, rename_keys
from imf_ray.claims import CLAIM_FILE
from imf_ray.config import shell_override
from imf_ray.files import parse_json, write_atomically, write_figure, write_if_changed
from imf_ray.folders import SPACE_FILE, TRIALS_DIR
from imf_ray.storage import authoritative_path, display_path, download, storage_errors
from imf_ray.sweep.search_space import SearchSpace
from imf_ray.sweep.trial_record import TrialDir, TrialRecord
from imf_ray.training.stoppable_dir import StoppableDir

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Baselines = Mapping[str, Mapping[str, float]]
"""Rollout metrics of the expert and of an untrained agent, by name."""
EXPERT_VIDEO, BEST_VIDEO = "expert.mp4", "best.mp4"
RESULTS_FILE, BASELINES_FILE = "sweep.json", "baselines.json"


@dataclass(frozen=True)
class SavedSpace:
    """Content of `space.json`, from which a sweep resumes."""

    space: SearchSpace
    overrides: list[str]
    """Command-line options with which the sweep was last started or resumed."""
    started_at: float
    """Time of the first launch in seconds since 1970."""
    trials: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Values of the varied options of each trial, by name; empty in files of earlier versions."""

    @classmethod
    def from_json(cls, content: Any, modified_at: float) -> SavedSpace:
        """Make it from the content of `space.json`, also of an earlier version.

        Args:
            modified_at: time at which the file was written, in seconds since 1970.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: it is not the content of that file.
        """
        content = rename_keys(content, SWEEP_KEYS)
        return cls(
            SearchSpace(**content["space"]),
            [str(item) for item in content["overrides"]],
            float(content.get("started_at", modified_at)),
            {str(name): dict(params) for name, params in content.get("trials", {}).items()},
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content of `space.json`."""
        return dataclasses.asdict(self)


class SweepDir(StoppableDir):
    """The folder of one sweep. No other class knows its file names.

        space.json        what a sweep resumes from, see `SavedSpace`
        trials/NAME/      run folder of each trial (`TrialDir`)
        tune/             Ray Tune's own state, which is never read
        baselines.json    metrics of the expert and of an untrained agent, by policy
        .claim            see `StoppableDir`
        stop_requested    see `StoppableDir`
        sweep.json        name of the search space, baselines, records of all trials, best first
        sweep.csv         the same records as a table
        grid.png          heat map, if the grid varies two options
        expert.mp4        one episode of the expert
        best.mp4          the same episode by the best checkpoint
        launches.jsonl    starts and resumes of `imf-ray tune`, see `imf_ray.launches`
        report.html       the sweep as one page, see `pages/report_file.py`

    Files and keys of earlier versions, which had other names, are also read (`imf_ray.aliases`).

    Methods raise `StorageError` if the storage fails. Only `stop_requested` and `clear_stop` retry.
    """

    @classmethod
    def find_all(cls, storage: Path) -> list[SweepDir]:
        """Return the sweeps in a storage folder, sorted by name."""
        folders = {storage, authoritative_path(storage)}
        names = {file.parent.name for folder in folders for file in folder.glob(f"*/{SPACE_FILE}")}
        return [cls(storage / name) for name in sorted(names)]

    def download_state(self) -> None:
        """Download configurations, logs and results, without weights, if the sweep has a URL."""
        download(self.path, "*.json", "*.jsonl", "*.yaml")

    # Inputs

    @property
    def _space_file(self) -> Path:
        return self.path / SPACE_FILE

    def read_space(self) -> SavedSpace | None:
        """Return the saved search space and options, or None if this is not a sweep."""
        download(self._space_file)
        if not self._space_file.is_file():
            return None
        return parse_json(
            self._space_file.read_bytes(),
            self._parse_space,
            self._space_file,
            "Restore it from a copy, or remove the folder and start the sweep again. To resume "
            "another sweep, set its run_name.",
        )

    def _parse_space(self, content: Any) -> SavedSpace:
        return SavedSpace.from_json(content, self._space_file.stat().st_mtime)

    def write_space(self, saved: SavedSpace) -> None:
        """Write the search space and options, unless the file already contains them."""
        write_if_changed(self._space_file, json.dumps(saved.to_json(), indent=1))

    # Trials

    def trial(self, name: str) -> TrialDir:
        """Return the run folder of a trial, which need not exist yet."""
        return TrialDir(self.path / TRIALS_DIR / name)

    def trials(self) -> list[TrialDir]:
        """Return the run folders of the trials, sorted by name."""
        return [TrialDir(path) for path in sorted((self.path / TRIALS_DIR).glob("*"))]

    def _related_folders(self) -> Iterable[Path]:
        """Return the trials that have a writer of their own."""
        trials = authoritative_path(self.path / TRIALS_DIR)
        with storage_errors(trials, "listed"):
            names = [file.parent.name for file in trials.glob(f"*/{CLAIM_FILE}")]
        return [self.path / TRIALS_DIR / name for name in names]

    @property
    def tune_dir(self) -> Path:
        """Ray Tune's own folder."""
        return self.path / "tune"

    # Results

    @property
    def _baselines_file(self) -> Path:
        return self.path / BASELINES_FILE

    def read_baselines(self) -> dict[str, dict[str, float]]:
        """Return the metrics of all baselines that have been evaluated, by policy."""
        baselines: dict[str, dict[str, float]] = {}
        for file in (*map(self.path.joinpath, BASELINES_FILES), self._baselines_file):
            if file.is_file():
                way_out = "Delete it. The next start of the sweep evaluates its policies again."
                baselines |= parse_json(file.read_bytes(), rename_baselines, file, way_out)
        return baselines

    def write_baselines(self, baselines: Baselines) -> None:
        """Write the metrics of all baselines that have been evaluated, by policy."""
        write_atomically(self._baselines_file, json.dumps(baselines))

    @property
    def _results_file(self) -> Path:
        return self.path / RESULTS_FILE

    def read_results(self) -> tuple[list[TrialRecord], Baselines] | None:
        """Return the records of all trials, best first, and the baselines.

        Returns:
            None if the sweep has no results yet.
        """
        download(self._results_file)
        if not self._results_file.is_file():
            return None
        return parse_json(
            self._results_file.read_bytes(),
            parse_results,
            self._results_file,
            "Delete it, and write it again with: imf-ray tune resume=auto "
            f"{shell_override('run_name', self.name)} "
            f"{shell_override('storage_path', display_path(self.path.parent))}",
        )

    def write_results(
        self, space: str, records: Sequence[TrialRecord], baselines: Baselines
    ) -> Path:
        """Write the name of the search space, the records and the baselines; return the file."""
        content = {
            "search_space": space,
            "baselines": baselines,
            "trials": [dataclasses.asdict(record) for record in records],
        }
        write_atomically(self._results_file, json.dumps(content, indent=1))
        return self._results_file

    def write_csv(self, table: str) -> Path:
        """Write the table of all trials; return the file."""
        path = self.path / "sweep.csv"
        write_atomically(path, table)
        return path

    def write_heat_map(self, figure: Figure) -> Path:
        """Write the heat map of a grid over two options; return the file."""
        path = self.path / "grid.png"
        write_figure(path, figure)
        return path

    def write_video(self, name: str, content: bytes) -> Path:
        """Write `EXPERT_VIDEO` or `BEST_VIDEO`; return the file."""
        path = self.path / name
        write_atomically(path, content)
        return path


def parse_results(content: Any) -> tuple[list[TrialRecord], Baselines]:
    """Return the records of all trials, best first, and the baselines from a `sweep.json`.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: it is not the content of that file.
    """
    content = rename_keys(content, SWEEP_KEYS)
    records = [TrialRecord.from_dict(trial) for trial in content["trials"]]
    return records, rename_baselines(content["baselines"])


def rename_baselines(baselines: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return baselines with the current names of metrics."""
    return {name: rename_keys(metrics, METRICS) for name, metrics in baselines.items()}
