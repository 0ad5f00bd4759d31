"""Compares the episodes of a run with those of an earlier launch.

Episodes are compared by content and in their order. Neither the folder of a data set nor the names
of its files matter, so it may be moved, copied, and renumbered in the same order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

from imf_ray.errors import abridge
from imf_ray.training.run_records import DataManifest

MAX_LISTED_EPISODES = 5
"""Maximum number of episodes in a message."""
NamedContent = tuple[str, str]
"""File name and content hash of an episode."""


def describe_changed_episodes(before: DataManifest, now: DataManifest) -> str | None:
    """Return how the episodes of a run have changed, or None if they are the same."""
    # An early version did not store the episodes held out for validation.
    with_val = bool(before.val_episodes)
    old, new = _contents(before, with_val), _contents(now, with_val)
    if _hashes(old) == _hashes(new):
        return None
    missing, added = _without(old, _hashes(new)), _without(new, _hashes(old))
    if not missing and not added:
        return "the same episodes are numbered in another order"
    changes = [
        f"missing or changed since the earlier launch: {abridge(missing, MAX_LISTED_EPISODES)}",
        f"new or changed: {abridge(added, MAX_LISTED_EPISODES)}",
    ]
    differences = [change for change, names in zip(changes, (missing, added), strict=True) if names]
    return f"the episodes differ: {'; '.join(differences)}"


def _contents(manifest: DataManifest, with_val: bool) -> list[NamedContent]:
    """Return the training episodes, and then those held out for validation."""
    contents = [(name, content_hash) for name, _, content_hash in manifest.episodes]
    val = manifest.val_episodes if with_val else []
    return contents + [(PurePath(e.path).name, e.content_hash) for e in val]


def _hashes(episodes: Sequence[NamedContent]) -> list[str]:
    return [content_hash for _, content_hash in episodes]


def _without(episodes: Sequence[NamedContent], hashes: Sequence[str]) -> list[str]:
    """Return the sorted names of the episodes left after removing one for each of `hashes`."""
    known = Counter(hashes)
    left = []
    for name, content_hash in episodes:
        if known[content_hash]:
            known[content_hash] -= 1
        else:
            left.append(name)
    return sorted(left)
