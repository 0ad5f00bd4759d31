"""Access to episode files without the checks of an index."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import h5py

from imf_ray.data.episodes import EpisodeRef
from imf_ray.data.hdf5.content_hash import HASH_ATTRIBUTE
from imf_ray.data.hdf5.layouts import IMF_RAY
from imf_ray.data.source_files import fingerprint


def episode_refs(paths: Iterable[Path]) -> tuple[EpisodeRef, ...]:
    """Make the references that an index would have, for files of our format, without checks."""
    refs = []
    for path in paths:
        with h5py.File(path) as file:
            length, content_hash = len(file["action"]), file.attrs[HASH_ATTRIBUTE]
        refs.append(EpisodeRef(str(path), length, IMF_RAY, fingerprint(path), content_hash))
    return tuple(refs)
