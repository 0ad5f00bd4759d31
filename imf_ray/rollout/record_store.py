"""Records on disk: what was judged survives, and is not judged again.

    episodes.jsonl    one record a line, added as episodes end, in the order of the seeds at last
    summary.json      what was judged how, on which seeds, with what result

A folder holds the records of one policy under one set of execution settings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from imf_ray.errors import UserError
from imf_ray.files import append_line, read_lines, write_atomically
from imf_ray.rollout.records import EpisodeRecord, summarize
from imf_ray.storage import download

EPISODES_FILE, SUMMARY_FILE = "episodes.jsonl", "summary.json"
KEY_LENGTH = 8


def settings_hash(policy: str, settings: Mapping[str, Any]) -> str:
    """A short digest by which the records of one policy and its settings are found again."""
    text = json.dumps([policy, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


class RecordStore:
    """The records of one policy under one set of settings, by seed.

    Raises:
        UserError: the folder holds records of another policy or of other settings, or a line that
            is not a record.
    """

    def __init__(self, folder: Path, policy: str, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self._policy, self._settings = policy, settings
        self.records: dict[int, EpisodeRecord] = {}
        download(folder)
        for record in read_records(folder / EPISODES_FILE):
            self._require_ours(record)
            self.records[record.seed] = record

    def missing(self, seeds: Iterable[int]) -> list[int]:
        """The seeds that were not judged yet; those that ended in an error are tried again."""
        return [s for s in seeds if s not in self.records or self.records[s].error is not None]

    def add(self, record: EpisodeRecord) -> None:
        """Keep a record, on disk at once."""
        self.records[record.seed] = record
        append_line(self.folder / EPISODES_FILE, _line(record))

    def finish(self, seeds: Sequence[int], **findings: Any) -> dict[str, Any]:
        """Put the lines in order, and write and return the summary over `seeds`.

        Args:
            findings: what else is known of the policy; None is left out.
        """
        ordered = [self.records[seed] for seed in sorted(self.records)]
        lines = "".join(f"{_line(record)}\n" for record in ordered)
        write_atomically(self.folder / EPISODES_FILE, lines)
        judged = [self.records[seed] for seed in seeds]
        summary = {
            "policy": self._policy,
            **summarize(judged).metrics(),
            **{key: value for key, value in findings.items() if value is not None},
            "settings": self._settings,
            "seeds": list(seeds),
            "errors": {record.seed: record.error for record in judged if record.error},
        }
        write_atomically(self.folder / SUMMARY_FILE, json.dumps(summary, indent=1))
        return summary

    def _require_ours(self, record: EpisodeRecord) -> None:
        differing = [
            f"{key}={record.settings.get(key)!r} (now {self._settings.get(key)!r})"
            for key in sorted({*record.settings, *self._settings})
            if record.settings.get(key) != self._settings.get(key)
        ]
        if record.policy != self._policy:
            differing.insert(0, f"policy {record.policy} (now {self._policy})")
        if differing:
            raise UserError(
                f"{self.folder / EPISODES_FILE} holds episodes of another judgement: "
                f"{', '.join(differing)}. Choose another evaluate.output_dir, or remove the folder."
            )


def read_records(path: Path) -> list[EpisodeRecord]:
    """The records of a file, in its order; none if there is no file.

    A last line without its end, left by a process that was killed, is not a record.

    Raises:
        UserError: a line is not a record.
    """
    records = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            records.append(EpisodeRecord(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{path}, line {number}, is not an episode's record ({error}). Remove the file to "
                "judge its episodes again."
            ) from error
    return records


def _line(record: EpisodeRecord) -> str:
    return json.dumps(asdict(record))
