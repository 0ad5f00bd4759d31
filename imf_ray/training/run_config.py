"""Ray Train's configuration of a run, for a run folder with any name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow.fs
from ray.train import RunConfig

from imf_ray.ray_internals import StorageContext, metric_tag
from imf_ray.storage import remote_path
from imf_ray.training.run_dir import RunDir


@dataclass
class RunDirConfig(RunConfig):
    """A `RunConfig` whose folder may have another name than the run.

    Ray Train uses the name of a run for its folder and for the tags of its metrics. A tag must be
    ASCII, or every worker fails (Ray 2.60); the name of a folder need not be.
    """

    folder_name: str = ""

    @cached_property
    def storage_context(self) -> StorageContext:
        """The folder in which Ray Train stores its files."""
        return StorageContext(
            storage_path=self.storage_path,
            experiment_dir_name=self.folder_name,
            storage_filesystem=self.storage_filesystem,
        )


def make_run_config(run_dir: RunDir, **options: Any) -> RunDirConfig:
    """Make the configuration of a run whose storage is its folder or URL.

    Args:
        options: other arguments of `RunConfig`.
    """
    storage = run_dir.path.parent
    remote = remote_path(storage)
    options |= {"name": metric_tag(run_dir.name), "folder_name": run_dir.name}
    if remote is None:
        return RunDirConfig(storage_path=str(storage), **options)
    filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(remote.fs))
    return RunDirConfig(storage_path=remote.path, storage_filesystem=filesystem, **options)
