"""Recognizes folders by their files, and names the checkpoints and runs in or near them.

A command that is given another kind of folder than it needs refuses it with the values that work.
"""

from __future__ import annotations

import difflib
import fnmatch
import logging
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from imf_ray.bundled import policy_names, policy_path
from imf_ray.checkpoint_dir import (
    CHECKPOINT_GLOB,
    CONFIG_FILE,
    EMA_WEIGHTS_FILE,
    MANIFEST_FILE,
    PARTIAL_PREFIX,
    SUCCESS_RATE,
    TRAIN_STATE_FILE,
    WEIGHTS_FILE,
    SavedCheckpoint,
    checkpoint_rank_key,
    read_checkpoint,
    read_metrics,
)
from imf_ray.errors import StorageError, UserError
from imf_ray.schema import Config
from imf_ray.storage import AnyPath, as_path, authoritative_path, exists, local_dir, storage_errors
from imf_ray.yaml_text import dump_value, parse_file

DEFAULT_STORAGE = str(Config.storage_path)
SPACE_FILE, TRIALS_DIR = "space.json", "trials"
DATA_MANIFEST_FILE, METRICS_FILE = "data.json", "metrics.jsonl"
EPISODES_FILE, COMPARISON_FILE = "episodes.jsonl", "comparison.json"
"""Files of a sweep, a run, an evaluation and a comparison, by which folders are recognized."""
LAUNCHES_FILE, REPORT_FILE = "launches.jsonl", "report.html"
"""Files about the launches of a run, sweep or comparison, and its report."""
EPISODE_SUFFIXES = (".hdf5", ".hdf", ".h5")
"""Suffixes of episode files, in any case."""
MAX_SUGGESTIONS = 6
log = logging.getLogger(__name__)
_POLICY_FILES = {CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE}
_CHECKPOINT_FILES = {WEIGHTS_FILE, EMA_WEIGHTS_FILE, MANIFEST_FILE, TRAIN_STATE_FILE}
_SWEEP_FILES = {SPACE_FILE, TRIALS_DIR}
_RUN_FILES = {DATA_MANIFEST_FILE, METRICS_FILE}
_MEASURED = {SUCCESS_RATE, "action_error"}
_MAX_DEPTH_IN_RUN = 3  # RUN/evaluations/NAME/episodes.jsonl


class FolderKind(StrEnum):
    """Kinds of folders, with their description in messages."""

    CHECKPOINT = "a checkpoint"
    UNFINISHED = "an unfinished checkpoint"
    INCOMPLETE = "an incomplete checkpoint"
    RUN = "the folder of a run"
    SWEEP = "the folder of a sweep"
    STORAGE = "a folder of runs"
    DATA_SET = "a data set"
    EVALUATION = "the output of an evaluation"
    COMPARISON = "the output of a comparison"
    EMPTY = "an empty folder"
    OTHER = "a folder of other files"
    FILE = "a file"
    MISSING = "a path that does not exist"


RUNS = (FolderKind.RUN, FolderKind.SWEEP)
WRITTEN_KINDS = (
    *RUNS,
    FolderKind.CHECKPOINT,
    FolderKind.UNFINISHED,
    FolderKind.INCOMPLETE,
    FolderKind.STORAGE,
    FolderKind.EVALUATION,
)
"""Kinds of folders that training and evaluation write."""
WITH_REPORT = (*RUNS, FolderKind.COMPARISON, FolderKind.EVALUATION, FolderKind.STORAGE)
"""Kinds of folders that a report or a page can show."""
_SOURCES = (FolderKind.CHECKPOINT, *RUNS)


def folder_kind(path: str | AnyPath) -> FolderKind:
    """Return the kind of a folder, according to the names of its files.

    Raises:
        StorageError: the storage cannot be read.
    """
    path = as_path(path)
    with storage_errors(path, "read"):
        if not path.is_dir():
            return FolderKind.FILE if path.is_file() else FolderKind.MISSING
        kind = _kind_by_names(path)
        if kind == FolderKind.OTHER and _runs_in(path):
            return FolderKind.STORAGE
        return kind


def require_checkpoint(folder: Path, storage: str = DEFAULT_STORAGE, prefix: str = "") -> None:
    """Check that a folder has the files of a checkpoint; their contents are not verified.

    Args:
        folder: a local path, or the local copy of a URL, which need not be downloaded yet.
        storage: folder of runs, in which a run that is given by its name alone is looked for.
        prefix: text in front of the path on the command line, such as `untrained:`.

    Raises:
        UserError: it has not; see `checkpoint_error`.
        StorageError: the storage cannot be read.
    """
    if folder_kind(authoritative_path(folder)) != FolderKind.CHECKPOINT:
        raise checkpoint_error(folder, storage, prefix)


def best_checkpoint(folder: Path) -> Path:
    """Return the best checkpoint of a run, and any other folder as it is.

    Without validations it is the newest checkpoint. Which one it is, is logged.

    Args:
        folder: a local path, or the local copy of a URL, which need not be downloaded yet.

    Raises:
        StorageError: the storage cannot be read.
    """
    path = authoritative_path(folder)
    metrics = _checkpoint_metrics(path) if folder_kind(path) == FolderKind.RUN else {}
    if not metrics:
        return folder
    best = _best(metrics)
    kind = "best" if _MEASURED & metrics[best].keys() else "newest"
    log.info("%s stands for its %s checkpoint, %s.", display(path), kind, best.name)
    return folder / best.name


def checkpoint_error(folder: Path, storage: str = DEFAULT_STORAGE, prefix: str = "") -> UserError:
    """Return the error that says what a folder is, and names the checkpoints in it or near it.

    Args:
        folder, storage, prefix: as in `require_checkpoint`.
    """
    path = authoritative_path(folder)
    kind = folder_kind(path)
    problem = _problem(path, kind, "a checkpoint", prefix)
    if kind == FolderKind.INCOMPLETE:
        missing = ", ".join(sorted(name for name in _POLICY_FILES if not exists(path / name)))
        problem = f"{prefix}{display(path)} is not a complete checkpoint, because it lacks "
        problem += f"{missing}. If it is a copy, copy the whole folder again."
    sources = _sources(path, kind, storage)
    checkpoints = [line for source in sources for line in _checkpoints(source, len(sources) == 1)]
    if checkpoints:
        problem += f" Use {_join(prefix + line for line in checkpoints)}."
    elif any(folder_kind(source) in RUNS for source in sources):
        problem += f" {_join(map(display, sources))} has no checkpoint yet."
    else:
        problem += " A checkpoint is a folder such as runs/NAME/checkpoint_00001000 or "
        problem += f"{_join(policy_names())}."
    if kind == FolderKind.RUN and checkpoints and not prefix:
        problem += (
            " To select the best one by rollouts: imf-ray evaluate "
            f"checkpoint={display(path)} evaluate.checkpoint_selection=best-of-run"
        )
    return UserError(problem)


def verify_checkpoint(folder: Path, *patterns: str) -> SavedCheckpoint:
    """Read a checkpoint folder on this machine and verify its files, see `read_checkpoint`.

    Raises:
        UserError: a file is missing or damaged. The message names other checkpoints of the run.
        StorageError: the folder cannot be read.
    """
    require_checkpoint(folder)
    try:
        return read_checkpoint(folder, *patterns)
    except StorageError:
        raise
    except UserError as error:
        path = authoritative_path(folder)
        lines = _checkpoints(path.parent, every=True)
        others = [line for line in lines if not line.startswith(display(path))]
        if not others:
            raise
        raise UserError(f"{error} Other checkpoints of the run: {_join(others)}.") from error


def require_run(
    folder: Path,
    storage: str = DEFAULT_STORAGE,
    accepted: Sequence[FolderKind] = (FolderKind.RUN,),
    suggest: Callable[[AnyPath], str] | None = None,
) -> None:
    """Check that a folder is the folder of a run, or of another accepted kind.

    Args:
        folder, storage: as in `require_checkpoint`.
        accepted: accepted kinds out of RUN, SWEEP and STORAGE.
        suggest: returns how a folder is given on the command line; None uses `display`.

    Raises:
        UserError: it is not. The message names the folders of accepted kinds in it or near it.
        StorageError: the storage cannot be read.
    """
    path = authoritative_path(folder)
    kind = folder_kind(path)
    if kind in accepted:
        return
    suggested: list[AnyPath] = []
    for source in _sources(path, kind, storage):
        if folder_kind(source) in accepted:
            suggested.append(source)
            continue
        around = [source.parent, *_runs_in(source / TRIALS_DIR)]
        suggested += [folder for folder in around if folder_kind(folder) in accepted]
    problem = _problem(path, kind, _join(accepted))
    if suggested:
        problem += f" Use {_join(map(suggest or display, dict.fromkeys(suggested)))}."
    raise UserError(problem)


def refuse_without_episodes(path: Path, prefix: str = "") -> None:
    """Refuse a folder that is recognized as something else than a data set.

    Args:
        prefix: text in front of the path on the command line, such as `replay:`.

    Raises:
        UserError: the folder belongs to training or evaluation.
    """
    kind = folder_kind(path)
    if kind in (*WRITTEN_KINDS, FolderKind.EMPTY):
        raise UserError(_problem(path, kind, "a data set or an episode file", prefix))


def training_data_of(folder: AnyPath) -> str | None:
    """Return the data set that a run or checkpoint was trained on; None if it is not recorded."""
    with suppress(OSError, UserError, KeyError, TypeError):
        config = parse_file((folder / CONFIG_FILE).read_bytes(), str(folder / CONFIG_FILE))
        return dump_value(config["data"]["dataset_dir"])
    return None


def display(path: AnyPath) -> str:
    """Return a path as it can be typed in a shell.

    A path below the working directory is relative to it. A released policy is shown by its name.
    """
    released_name = f"policies/{path.name}"
    if policy_path(released_name) == path:
        return released_name
    if isinstance(path, Path) and path.is_relative_to(Path.cwd()) and path != Path.cwd():
        return shlex.quote(str(path.relative_to(Path.cwd())))
    return shlex.quote(str(path))


def _problem(path: AnyPath, kind: FolderKind, needed: str, prefix: str = "") -> str:
    """Return a sentence that says what a path is instead of what is needed."""
    shown = f"{prefix}{display(path)}"
    if kind == FolderKind.MISSING:
        return f"{shown} does not exist."
    if kind == FolderKind.UNFINISHED:
        return f"{shown} is {kind}, whose writing was interrupted."
    return f"{shown} is {kind}, not {needed}."


def _kind_by_names(path: AnyPath) -> FolderKind:
    """Return the kind of a folder without a look into its subfolders."""
    if path.name.startswith(PARTIAL_PREFIX):
        return FolderKind.UNFINISHED
    names = {child.name for child in _children(path)}
    if names >= _POLICY_FILES:
        return FolderKind.CHECKPOINT
    if names & _CHECKPOINT_FILES or fnmatch.fnmatch(path.name, CHECKPOINT_GLOB):
        return FolderKind.INCOMPLETE
    if names & _SWEEP_FILES:
        return FolderKind.SWEEP
    checkpoints = fnmatch.filter(names, CHECKPOINT_GLOB)
    if names & _RUN_FILES or any("." not in name for name in checkpoints):  # videos have a suffix
        return FolderKind.RUN
    if CONFIG_FILE in names and _has_train_section(path / CONFIG_FILE):
        return FolderKind.RUN  # it has just started
    if any(name.lower().endswith(EPISODE_SUFFIXES) for name in names):
        return FolderKind.DATA_SET
    if EPISODES_FILE in names:
        return FolderKind.EVALUATION
    if COMPARISON_FILE in names:
        return FolderKind.COMPARISON
    return FolderKind.OTHER if names else FolderKind.EMPTY


def _has_train_section(config_file: AnyPath) -> bool:
    """Return True if a configuration has options of training, as those of runs have."""
    lines = config_file.read_bytes().decode(errors="replace").splitlines()
    return any(line.startswith("train:") for line in lines)


def _children(folder: Any) -> list[AnyPath]:
    """Return the files and folders in a folder, sorted; none if it cannot be listed."""
    try:
        return sorted(folder.iterdir(), key=str)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def _runs_in(folder: AnyPath) -> list[AnyPath]:
    """Return the runs and sweeps directly in a folder, sorted by name."""
    folders: list[AnyPath] = [child for child in _children(folder) if child.is_dir()]
    return [child for child in folders if _kind_by_names(child) in RUNS]


def _sources(path: AnyPath, kind: FolderKind, storage: str) -> list[AnyPath]:
    """Return the checkpoints, runs and sweeps that the user may have meant by `path`."""
    if kind in _SOURCES:
        return [path]
    if kind == FolderKind.STORAGE:
        return _runs_in(path)
    if kind == FolderKind.MISSING:
        return _similar(path, storage)
    for parent in list[AnyPath](path.parents)[:_MAX_DEPTH_IN_RUN]:
        if _kind_by_names(parent) in _SOURCES:
            return [parent]
    return _runs_in(authoritative_path(local_dir(storage)))


def _similar(path: AnyPath, storage: str) -> list[AnyPath]:
    """Return the checkpoints, runs and sweeps whose names are closest to that of a missing path."""
    ancestor = next(parent for parent in path.parents if parent.is_dir())
    starts = [(ancestor, path.parts[len(ancestor.parts) :])]
    if isinstance(path, Path) and path.is_relative_to(Path.cwd()):
        relative = path.relative_to(Path.cwd())
        starts.append((authoritative_path(local_dir(storage)), relative.parts))
        released = difflib.get_close_matches(str(relative), policy_names(), n=1)
        starts += [(policy_path(name), ()) for name in released]
    storages = []
    for folder, names in starts:
        for name in names:
            if not (folder / name).is_dir():
                folders = [child.name for child in _children(folder) if child.is_dir()]
                name = next(iter(difflib.get_close_matches(name, folders, n=1)), "")
            if not name:
                break
            folder = folder / name
        kind = folder_kind(folder)
        if kind in _SOURCES:
            return [folder]
        storages += [folder] if kind == FolderKind.STORAGE else []
    return _runs_in(storages[0]) if storages else []


def _checkpoints(source: AnyPath, every: bool) -> list[str]:
    """Return the checkpoints of a checkpoint, run or sweep, as they can be typed.

    Args:
        every: return every checkpoint of a run, not only the best or newest one.
    """
    kind = folder_kind(source)
    if kind == FolderKind.CHECKPOINT:
        return [display(source)]
    if kind == FolderKind.SWEEP:
        return [line for run in _runs_in(source / TRIALS_DIR) for line in _checkpoints(run, False)]
    metrics = _checkpoint_metrics(source)
    if not metrics:
        return []
    newest = max(metrics, key=lambda path: metrics[path]["step"])
    best = _best(metrics)
    ranked = sorted(metrics, key=lambda path: (path != best, -metrics[path]["step"]))
    is_measured = any(_MEASURED & values.keys() for values in metrics.values())
    lines = []
    for path in ranked if every else [best]:
        marks = ["best"] if path == best and is_measured else []
        marks += ["newest"] if path == newest else []
        lines.append(display(path) + (f" ({', '.join(marks)})" if marks else ""))
    return lines


def _checkpoint_metrics(run: AnyPath) -> dict[AnyPath, dict[str, Any]]:
    """Return the metrics of each complete checkpoint of a run."""
    metrics = {}
    for path in _children(run):
        if (
            fnmatch.fnmatch(path.name, CHECKPOINT_GLOB)
            and folder_kind(path) == FolderKind.CHECKPOINT
        ):
            values = read_metrics(path)
            if values is not None:
                metrics[path] = values
    return metrics


def _best(metrics: Mapping[AnyPath, Mapping[str, Any]]) -> AnyPath:
    return min(metrics, key=lambda path: checkpoint_rank_key(metrics[path]))


def _join(items: Iterable[str]) -> str:
    """Join texts to `A, B or C`, and abridge a long list."""
    texts = list(items)
    if len(texts) > MAX_SUGGESTIONS:
        texts = [*texts[:MAX_SUGGESTIONS], f"one of {len(texts) - MAX_SUGGESTIONS} others"]
    return " or ".join(part for part in (", ".join(texts[:-1]), texts[-1]) if part)
