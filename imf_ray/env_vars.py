"""Every environment variable that the package sets, in one place.

They are set for the driver before Ray is imported and for every Ray process of the job. A value
that the caller's environment already has wins.
"""

from __future__ import annotations

import os

WORKER_ENV = {
    # MuJoCo renders without a display; with no GPU, through Mesa's software rasterizer,
    "MUJOCO_GL": "egl",
    # which would otherwise take all cores of the machine for each simulator.
    "LP_NUM_THREADS": "1",
    # Tune prints no table of its own: a sweep shows its own progress.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Ray Train's runs are shown on the dashboard's Train page only with this.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    # A report returns at the controller's next poll: 2 s by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # What a worker prints goes to its log once, not twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # What torch.compile makes is kept for later runs; in /tmp, its default, a restart deletes it.
    "TORCHINDUCTOR_CACHE_DIR": os.path.expanduser("~/.cache/imf_ray/inductor"),
    # Pictures and batches are megabytes each, which glibc returns to the system as soon as they are
    # free: getting the next ones took up to half of the data path's time (docs/results/data.md).
    # 32 MiB is the largest threshold that it takes; up to 256 MiB at the end of a heap are kept.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
}

DRIVER_ENV = {
    # What ranks trials comes with some of their reports only: a validation takes its time.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Ray would report usage statistics to its makers.
    "RAY_USAGE_STATS_ENABLED": "0",
}

LOCAL_CLUSTER_ENV = {
    # A cluster that a run starts for itself listens on this machine only and ends with the run: no
    # token is written to the user's home for it. Other clusters keep the caller's mode.
    "RAY_AUTH_MODE": "disabled",
    # Parts of a run live in fractions of a CPU: Ray takes more processes than cores for a fault.
    "RAY_worker_maximum_startup_concurrency": "8",
    # Where CPUs are all taken, an idle process ends after a second by default; readers, which work
    # every few seconds, would start anew each time.
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
}


def prepare_environment(own_cluster: bool) -> dict[str, str]:
    """Set what is unset in this process; return what every Ray process of the job needs."""
    chosen = {**DRIVER_ENV, **WORKER_ENV}
    for name, value in (chosen | (LOCAL_CLUSTER_ENV if own_cluster else {})).items():
        os.environ.setdefault(name, value)
    return {name: os.environ[name] for name in WORKER_ENV}
