"""Stores episode records on disk, so that no episode is run twice.

A folder holds the records of one policy under one set of settings:

    episodes.jsonl    one record per line, in the order in which episodes end
    summary.json      the policy, its settings, the seeds and the result
    .claim            names the process that runs the evaluation, see `imf_ray.claims`

`RecordStore.finalize` sorts `episodes.jsonl` by seed and writes `summary.json`. The episode of a
damaged line is run again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from imf_ray.aliases import OPTIONS, RECORD_FIELDS, RECORD_SETTINGS, VALUES, rename_keys
from imf_ray.claims import claim
from imf_ray.errors import UserError
from imf_ray.files import append_line, read_json_lines, write_atomically
from imf_ray.folders import EPISODES_FILE
from imf_ray.rollout.records import EpisodeRecord, summarize
from imf_ray.storage import download

EVALUATIONS_DIR, SUMMARY_FILE, GRID_VIDEO = "evaluations", "summary.json", "grid.mp4"
HASH_LENGTH = 8
"""Number of hexadecimal digits of `settings_hash`."""


def settings_hash(policy: str, settings: Mapping[str, Any]) -> str:
    """Return a short digest that identifies a policy and its settings."""
    text = json.dumps([policy, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


class RecordStore:
    """The records of one policy under one set of settings, by seed, in memory and in `folder`.

    Records are added and finalized only inside `with store.claimed()`.

    Raises:
        UserError: the folder holds records of another policy or of other settings.
    """

    def __init__(self, folder: Path, policy: str, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self._policy, self._settings = policy, settings
        self.records: dict[int, EpisodeRecord] = {}
        self._load()

    @contextmanager
    def claimed(self, way_out: str = "choose another evaluate.output_dir") -> Iterator[None]:
        """Exclude other writers while the `with` block runs, and read what they have written.

        Args:
            way_out: see `imf_ray.claims.claim`.

        Raises:
            ClaimedError: another process runs this evaluation.
        """
        with claim(self.folder, way_out):
            self._load()
            yield

    def _load(self) -> None:
        download(self.folder)
        self.records.clear()
        for record in read_records(self.folder / EPISODES_FILE):
            self._check_same_settings(record)
            self.records[record.seed] = record

    def missing(self, seeds: Iterable[int]) -> list[int]:
        """Return the seeds without a record, and those whose record is an error."""
        return [s for s in seeds if s not in self.records or self.records[s].error is not None]

    def add(self, record: EpisodeRecord) -> None:
        """Add a record and append it to `episodes.jsonl` immediately."""
        self.records[record.seed] = record
        append_line(self.folder / EPISODES_FILE, _record_line(record))

    def finalize(self, seeds: Sequence[int], **extra: Any) -> dict[str, Any]:
        """Sort `episodes.jsonl` by seed; write `summary.json` over `seeds` and return its content.

        Args:
            extra: further entries of the summary; an entry that is None is left out.
        """
        ordered = [self.records[seed] for seed in sorted(self.records)]
        lines = "".join(f"{_record_line(record)}\n" for record in ordered)
        write_atomically(self.folder / EPISODES_FILE, lines)
        records = [self.records[seed] for seed in seeds]
        summary = {
            "policy": self._policy,
            **summarize(records).metrics(),
            **{key: value for key, value in extra.items() if value is not None},
            "settings": self._settings,
            "seeds": list(seeds),
            "errors": {record.seed: record.error for record in records if record.error},
        }
        write_atomically(self.folder / SUMMARY_FILE, json.dumps(summary, indent=1))
        return summary

    def _check_same_settings(self, record: EpisodeRecord) -> None:
        """Raise a `UserError` if a record is of another policy or of other settings."""
        differences = [
            f"{key}={record.settings.get(key)!r} (now {self._settings.get(key)!r})"
            for key in sorted({*record.settings, *self._settings})
            if record.settings.get(key) != self._settings.get(key)
        ]
        if record.policy != self._policy:
            differences.insert(0, f"policy {record.policy} (now {self._policy})")
        if differences:
            raise UserError(
                f"{self.folder / EPISODES_FILE} holds episodes of another evaluation: "
                f"{', '.join(differences)}. Choose another evaluate.output_dir, or remove the "
                "folder."
            )


def read_records(path: str | Path) -> list[EpisodeRecord]:
    """Read the records of a file in the order of its lines; return [] if there is no file.

    A damaged line is skipped, see `read_json_lines`.
    """
    return read_json_lines(Path(path), _record_from_json).rows


def parse_record(line: str) -> EpisodeRecord:
    """Make the record of a JSON line, which an earlier version may have written.

    Raises:
        AttributeError, TypeError, ValueError: the line is not a record.
    """
    return _record_from_json(json.loads(line))


def _record_from_json(row: Any) -> EpisodeRecord:
    record = EpisodeRecord(**rename_keys(row, RECORD_FIELDS))
    for name in ("seed", "max_stage", "num_stages", "steps", "episode_return"):
        if not isinstance(getattr(record, name), (int, float)):
            raise TypeError(f"{name} is not a number")
    return replace(record, settings=_rename_settings(record.settings))


def _rename_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's settings under their current names, including the task's adapter."""
    settings = rename_keys(settings, RECORD_SETTINGS)
    adapter = settings.get("task", {}).get("adapter")
    if adapter is None:
        return settings
    section = "task.adapter."
    names = {
        old.removeprefix(section): new.removeprefix(section)
        for old, new in OPTIONS.items()
        if old.startswith(section)
    }
    adapter = rename_keys(adapter, names)
    for key in adapter:
        renamed_values = VALUES.get(section + key, {})
        if renamed_values:
            adapter[key] = renamed_values.get(adapter[key], adapter[key])
    return {**settings, "task": {**settings["task"], "adapter": adapter}}


def _record_line(record: EpisodeRecord) -> str:
    """Return a record as one line of JSON, without the line break."""
    return json.dumps(asdict(record))
