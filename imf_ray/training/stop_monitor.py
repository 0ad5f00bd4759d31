"""Stopping a run early without losing an update.

A driver that is asked to stop requests it in the run's folder (`RunDir.request_stop`). Rank 0 sees
the request, and all ranks agree on the training step to stop at. Rank 0 saves its checkpoint and
deletes the request. The driver waits until the request is gone.

A node that is about to be drained also leads to a checkpoint. Training then continues until the
node is gone.
"""

from __future__ import annotations

import logging
import time
from enum import IntEnum
from typing import Any

import ray.train
import torch
import torch.distributed

from imf_ray.errors import StorageError
from imf_ray.training.run_dir import RunDir

CHECK_INTERVAL_S = 5.0
"""Seconds between checks for draining nodes and, for remote runs, for a request to stop.

A local run checks for a request after every training step."""
log = logging.getLogger(__name__)


class StopSignal(IntEnum):
    """Decision that all ranks agree on after a training step."""

    NONE = 0
    CHECK_NODES = 1
    """All ranks ask Ray Train whether a node is draining."""
    STOP = 2


class StopMonitor:
    """Polls for stop requests and draining nodes; all ranks return the same answer."""

    def __init__(self, run_dir: RunDir, rank: int, world_size: int) -> None:
        self._run_dir, self._rank = run_dir, rank
        self._is_remote = run_dir.is_remote  # takes time to find out
        self._group: Any = None
        if world_size > 1:  # on the CPU, so that no rank waits for its GPU
            self._group = torch.distributed.new_group(backend="gloo")
        self._checked_at = time.monotonic()
        self._saved_for: set[str] = set()
        """Ids of draining nodes for which a checkpoint was saved."""

    def poll(self) -> tuple[bool, bool]:
        """Return two flags: a node has started to drain; the run must stop.

        Every rank calls this after every training step.
        """
        signal = self._agree(self._local_signal() if self._rank == 0 else StopSignal.NONE)
        node_draining = signal == StopSignal.CHECK_NODES and self._node_is_draining()
        return node_draining, signal == StopSignal.STOP

    def _local_signal(self) -> StopSignal:
        is_due = time.monotonic() - self._checked_at >= CHECK_INTERVAL_S
        if (is_due or not self._is_remote) and self._stop_requested():
            return StopSignal.STOP
        if not is_due:
            return StopSignal.NONE
        self._checked_at = time.monotonic()
        return StopSignal.CHECK_NODES

    def _stop_requested(self) -> bool:
        try:
            return self._run_dir.stop_requested(retry=False)
        except StorageError as error:  # a brief network failure must not end a training
            log.warning("The check for a stop request failed: %s", error)
            return False

    def _agree(self, signal: StopSignal) -> StopSignal:
        """Return rank 0's signal on every rank."""
        if self._group is None:
            return signal
        value = torch.tensor(int(signal))
        torch.distributed.broadcast(value, src=0, group=self._group)
        return StopSignal(int(value))

    def _node_is_draining(self) -> bool:
        """Return True if a node of this run is draining and no checkpoint was saved for it yet."""
        info = ray.train.get_preemption_info()  # equal on every rank
        draining = set() if info is None else set(info.preempted_node_ids)
        new = draining - self._saved_for
        self._saved_for |= draining
        return bool(new)
