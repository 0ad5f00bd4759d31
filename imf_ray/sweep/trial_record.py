"""The record of one trial, and the run folder that holds it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from imf_ray.aliases import METRICS, TRIAL_FIELDS, rename_keys
from imf_ray.files import parse_json, retry_io, retrying, write_atomically
from imf_ray.redaction import redact
from imf_ray.storage import authoritative_path, delete, read_text_or_none
from imf_ray.training.run_dir import RunDir

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"


@dataclass(frozen=True)
class TrialRecord:
    """Parameters, processes and result of one trial."""

    name: str
    params: dict[str, Any]
    status: str
    """`FINISHED`, `STOPPED` (by the scheduler), or `FAILED` with the reason in `error`."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Metrics of the best checkpoint."""
    best_checkpoint: str | None = None
    run_dir: str = ""
    driver_pid: int = 0
    driver_host: str = ""
    workers: list[dict[str, Any]] = field(default_factory=list)
    """Rank, pid, host, gpu_ids and log_path of each worker."""
    swanlab_run: str | None = None
    error: str | None = None
    failed_validation_steps: list[int] = field(default_factory=list)
    """Steps of the existing checkpoints whose validation failed."""

    @property
    def is_complete(self) -> bool:
        """True if neither training nor validation has to be repeated on resume.

        A trial that the scheduler stopped is complete even if a validation failed.
        """
        return self.status == STOPPED or (
            self.status == FINISHED and not self.failed_validation_steps
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialRecord:
        """Rebuild a record from its dictionary, which may use the names of earlier versions.

        Raises:
            ValueError, TypeError, AttributeError: `values` is not the dictionary of a record.
        """
        renamed = rename_keys(values, TRIAL_FIELDS)
        metrics = rename_keys(renamed.get("metrics", {}), METRICS)
        return cls(**{**renamed, "metrics": metrics})


class TrialDir(RunDir):
    """The run folder of a trial, which holds `trial.json` once the trial has ended."""

    def read_record(self, retry: bool = True) -> TrialRecord | None:
        """Return the trial's record, or None if the trial has not ended.

        Args:
            retry: retry while the storage cannot be reached, instead of raising `StorageError`.

        Raises:
            UserError: the file does not contain a trial's record.
        """
        path = authoritative_path(self.trial_file)
        text = retry_io(read_text_or_none, path) if retry else read_text_or_none(path)
        if text is None:
            return None
        way_out = "Delete it. The next start of the sweep then writes the trial's record again."
        return parse_json(text, TrialRecord.from_dict, path, way_out)

    @retrying
    def write_record(self, record: TrialRecord) -> None:
        """Write the record of a trial that has ended, without secrets in its error."""
        values = dataclasses.asdict(record)
        values["error"] = None if record.error is None else redact(record.error)
        write_atomically(self.trial_file, json.dumps(values, indent=1))

    @retrying
    def delete_record(self) -> None:
        """Delete the record, so that the trial is resumed."""
        delete(self.trial_file)
