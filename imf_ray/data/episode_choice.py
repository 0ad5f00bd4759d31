"""Chooses the episodes of a data set that a run uses: by number, or by task."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from imf_ray.config import to_override
from imf_ray.data.check_pool import CheckResult
from imf_ray.data.episodes import EpisodeMetadata
from imf_ray.errors import UserError, abridge
from imf_ray.storage import AnyPath

TASKS = "tasks"
"""Attribute of an episode with the texts of its tasks."""
MAX_LISTED = 10
"""Maximum number of episodes or tasks in a message."""
_NUMBER = re.compile(r"_?([0-9]+)(?:\.[a-z0-9]+)?$", re.IGNORECASE)


def choose_episodes(paths: Sequence[AnyPath], numbers: Sequence[int]) -> list[AnyPath]:
    """Return the episodes with these numbers in the order of the data set, or all without numbers.

    The number of an episode is the last one in its name: 3 for `episode_3.hdf5` and `demo_3`.

    Raises:
        UserError: there is no episode of a number.
    """
    if not numbers:
        return list(paths)
    by_number = {_number(path.name): path for path in paths}
    missing = [str(number) for number in numbers if number not in by_number]
    if missing:
        raise UserError(
            f"{to_override('data.episodes', list(numbers))} names episodes that are not there: "
            f"{abridge(missing, MAX_LISTED)}. The data set has the episodes {min(by_number)} to "
            f"{max(by_number)}, {len(by_number)} in total."
        )
    chosen = {by_number[number] for number in numbers}
    return [path for path in paths if path in chosen]


def choose_tasks(
    results: Mapping[AnyPath, CheckResult], tasks: Sequence[str]
) -> dict[AnyPath, CheckResult]:
    """Return the results of episodes with one of these tasks, or all without tasks.

    Episodes that cannot be read are kept, because their task is unknown.

    Raises:
        UserError: no episode has one of the tasks.
    """
    if not tasks:
        return dict(results)
    recorded = {
        path: set(result.attributes.get(TASKS, ()))
        for path, result in results.items()
        if isinstance(result, EpisodeMetadata)
    }
    present = set[str]().union(*recorded.values())
    missing = [task for task in tasks if task not in present]
    if missing:
        known = abridge([repr(task) for task in sorted(present)], MAX_LISTED) or "none"
        raise UserError(
            f"No episode has the task {missing[0]!r}. The tasks of the data set are: {known}. Set "
            "data.tasks to some of them, or to [] for all."
        )
    return {
        path: result
        for path, result in results.items()
        if path not in recorded or recorded[path] & set(tasks)
    }


def _number(name: str) -> int:
    match = _NUMBER.search(name)
    return -1 if match is None else int(match[1])
