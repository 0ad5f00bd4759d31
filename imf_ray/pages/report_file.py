"""Writes `report.html`: the page of a run, sweep, comparison or evaluation as one file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from imf_ray.files import write_atomically
from imf_ray.folders import REPORT_FILE, WITH_REPORT, folder_kind
from imf_ray.launches import recorded_launch
from imf_ray.pages.media_files import MIME_TYPES
from imf_ray.pages.render import render_page
from imf_ray.pages.snapshot import SnapshotReader
from imf_ray.schema import ReportConfig
from imf_ray.storage import display_path, download
from imf_ray.terminal import console

BYTES_PER_MB = 10**6
COPIED_FILES = ("*.json", "*.jsonl", "*.yaml", *(f"*{suffix}" for suffix in MIME_TYPES))
"""Files that a report reads, which are downloaded first if the folder has a URL."""
log = logging.getLogger(__name__)


def write_report(folder: Path, options: ReportConfig) -> Path:
    """Write the report of a folder and return its path.

    Args:
        folder: a local folder, or the local copy of a URL, to which the report is then uploaded.

    Raises:
        UserError: the folder has no page.
        StorageError: the folder cannot be read, or the report cannot be written.
    """
    download(folder, *COPIED_FILES)
    path = folder / REPORT_FILE if options.output is None else Path(options.output)
    reader = SnapshotReader(
        folder,
        links=False,
        media_root=path.parent,
        max_file_bytes=int(options.max_video_mb * BYTES_PER_MB),
        max_total_bytes=int(options.max_total_mb * BYTES_PER_MB),
    )
    write_atomically(path, render_page(reader.read()))
    return path


@contextmanager
def reported_launch(
    folder: Path, command: str, arguments: Sequence[str], options: ReportConfig
) -> Iterator[None]:
    """Record the `with` block as a launch, see `recorded_launch`, and then write the report.

    The report is also written if the block fails or is interrupted. That it cannot be written is
    logged, because the result of the block counts more.
    """
    try:
        with recorded_launch(folder, command, arguments):
            yield
    finally:
        if folder_kind(folder) in WITH_REPORT:  # otherwise it failed before it wrote anything
            _try_to_write_report(folder, options)


def _try_to_write_report(folder: Path, options: ReportConfig) -> None:
    """Write the report and print its path, or log why it cannot be written."""
    try:
        path = write_report(folder, options)
    except Exception as error:  # also a bug in a page must not hide the result
        log.warning("There is no report: %s: %s", type(error).__name__, error)
    else:
        console.print(f"Report: {display_path(path)}", soft_wrap=True)
