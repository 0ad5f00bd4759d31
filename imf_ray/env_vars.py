"""All environment variables that the package sets, with the reasons.

The driver process sets them before it imports Ray, and passes `WORKER_ENV` to every Ray process of
the job. A variable that the user's environment already sets keeps its value, unless it is empty.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

WORKER_ENV = {
    # MuJoCo renders without a display. Without a GPU, EGL uses Mesa's software rasterizer.
    "MUJOCO_GL": "egl",
    # By default, each rollout actor's software rasterizer would use all cores of the machine.
    "LP_NUM_THREADS": "1",
    # Turn off Tune's own progress table, because a sweep shows its own progress.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Ray's dashboard shows runs on its Train page only if this is set.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    # `ray.train.report` returns at the controller's next poll, which is every 2 s by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Otherwise a worker's output is written to its log twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # By default, glibc returns freed images and batches (megabytes each) to the system at once.
    # Page faults of the next ones took up to half of the data path's time (docs/results/data.md).
    # 32 MiB is the largest threshold that glibc accepts. Up to 256 MiB stay at the end of a heap.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
}
"""Variables that are set in every Ray process of a job."""

DRIVER_ENV = {
    # Only some reports of a trial contain the metric that ranks trials, namely validations.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Tune warns of steps of its loop that take more seconds than this, by default half a second. A
    # trial reports only its validations, so that a busy machine alone is no reason to warn.
    "TUNE_WARN_THRESHOLD_S": "30",
    # Do not report usage statistics to Ray's developers.
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Variables that are set only in the driver process."""

LOCAL_CLUSTER_ENV = {
    # A cluster that a command starts listens on this machine only and ends with the command. So no
    # token is needed, and none is written to the user's home. Other clusters keep the user's mode.
    "RAY_AUTH_MODE": "disabled",
    # A trial has about ten processes, most of which take a small fraction of a CPU. By default,
    # Ray starts as many processes at a time as there are cores, and warns of four times as many.
    "RAY_worker_maximum_startup_concurrency": str(max(8, 4 * (os.cpu_count() or 1))),
    # If all CPUs are taken, Ray ends an idle process after 1 s by default. Data readers work every
    # few seconds, so each time a new process would have to start.
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    # A node that ends with the command is not drained, so no actor has to look for that.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Further variables for a cluster that the command starts on this machine."""


def prepare_environment(own_cluster: bool) -> dict[str, str]:
    """Set all variables that this process does not have yet, or that are empty.

    Args:
        own_cluster: True if the command starts a cluster, False if it connects to one.

    Returns:
        The values of `WORKER_ENV` in this process, for the Ray processes of the job.
    """
    try:
        Path.home()
    except RuntimeError:  # a user of a container without an entry; Ray Train needs a home folder
        os.environ["HOME"] = tempfile.gettempdir()
    variables = {**DRIVER_ENV, **WORKER_ENV}
    for name, value in (variables | (LOCAL_CLUSTER_ENV if own_cluster else {})).items():
        os.environ[name] = os.environ.get(name) or value
    return {name: os.environ[name] for name in WORKER_ENV}
