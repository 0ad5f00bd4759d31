"""Ending a run before its time without losing an update.

A driver that is asked to stop leaves a request in the run's folder. Rank 0 sees it, all ranks agree
on the step, the checkpoint of that step is written, and the request is taken away: this is how the
driver learns that nothing more is to be waited for. A node that is about to be taken away leads to
a checkpoint, too, and the training goes on until it is gone.
"""

from __future__ import annotations

import logging
import time
from enum import IntEnum
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed

from imf_ray.errors import StorageError
from imf_ray.storage import authoritative_path, exists, remote_path, storage_errors
from imf_ray.training.checkpoint import MANIFEST, checkpoint_path
from imf_ray.training.tracking import has_live_workers

STOP_FILE = "stop_requested"
log = logging.getLogger(__name__)
CHECK_S = 5.0
"""How often the ranks ask whether one of their nodes is being drained, or whether a run that is
kept at a URL shall stop; in a folder they look after every step."""


def request_stop(run_dir: Path) -> None:
    """Ask the run's workers for a checkpoint of the present step, and to end with it."""
    request = authoritative_path(run_dir) / STOP_FILE
    with storage_errors(request, "written"):
        request.touch()


def clear_stop(run_dir: Path) -> None:
    """Take back what was asked, if anything was."""
    request = authoritative_path(run_dir) / STOP_FILE
    with storage_errors(request, "deleted"):
        request.unlink(missing_ok=True)


def stop_requested(run_dir: Path) -> bool:
    """Whether a request to stop waits to be answered."""
    return exists(authoritative_path(run_dir) / STOP_FILE)


def safe_to_kill(run_dir: Path, max_steps: int) -> bool:
    """Whether killing the run now loses nothing, after it was asked to stop."""
    if not stop_requested(run_dir) or not has_live_workers(run_dir):
        return True
    # A run that is trained waits for validations alone.
    return exists(authoritative_path(checkpoint_path(run_dir, max_steps)) / MANIFEST)


class StopSignal(IntEnum):
    """What the ranks agree on after a step."""

    NONE = 0
    LOOK = 1
    """Ask Ray Train whether a node is going."""
    STOP = 2


class StopMonitor:
    """One worker's eye on requests to stop and on nodes that go; all ranks hear the same."""

    def __init__(self, run_dir: Path, rank: int, world_size: int) -> None:
        self._run_dir, self._rank = run_dir, rank
        # On the CPU, so that a rank need not wait for its GPU to know.
        self._group: Any = None
        if world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")
        self._is_copy = remote_path(run_dir) is not None
        self._looked = time.monotonic()
        self._saved_for: set[str] = set()

    def look(self) -> tuple[bool, bool]:
        """Whether a checkpoint is needed now, and whether the run ends with it.

        Every rank calls it after every step.
        """
        notice = self._agree(self._own_notice() if self._rank == 0 else StopSignal.NONE)
        if notice == StopSignal.STOP:
            return True, True
        return notice == StopSignal.LOOK and self._a_node_goes(), False

    def _own_notice(self) -> StopSignal:
        due = time.monotonic() - self._looked >= CHECK_S
        if (due or not self._is_copy) and self._is_asked():
            return StopSignal.STOP
        if not due:
            return StopSignal.NONE
        self._looked = time.monotonic()
        return StopSignal.LOOK

    def _is_asked(self) -> bool:
        try:
            return stop_requested(self._run_dir)
        except StorageError as error:  # a network that fails for a moment must not end a training
            log.warning("Whether to stop is not known: %s", error)
            return False

    def _agree(self, notice: StopSignal) -> StopSignal:
        if self._group is None:
            return notice
        value = torch.tensor(int(notice))
        torch.distributed.broadcast(value, src=0, group=self._group)
        return StopSignal(int(value))

    def _a_node_goes(self) -> bool:
        """Whether a node of this run is being drained that no checkpoint was written for yet."""
        info = ray.train.get_preemption_info()  # the same on every rank
        going = set() if info is None else set(info.preempted_node_ids)
        fresh = going - self._saved_for
        self._saved_for |= going
        return bool(fresh)
