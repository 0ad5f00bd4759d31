"""Time until the workers of a stopped trial are freed, in imf_ray and in Tune alone.

    python -m benchmarks.early_stop_latency data.dataset_dir=data/demo

Each case has its own cluster, with and without the dashboard. In the case `imf_ray`, the first
trial of a sweep gets a request to stop after its first checkpoint, as from a scheduler. In the case
`Tune alone`, a trial that runs a `TorchTrainer` is stopped by `stop=`. The time ends when the
placement group of the workers is removed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from imf_ray.env_vars import prepare_environment

CPUS, POLL_S, TIMEOUT_S = 4, 0.1, 600.0
LEFT_BEHIND_S = 60.0
"""Seconds after which a placement group that still exists is reported as left behind."""
OPTIONS = (
    "search_space=quickstart",
    "run_name=sweep",
    "train.max_steps=100000",
    "train.save_freq=20",
    "tune.max_concurrent_trials=1",
)
KINDS = ("imf_ray", "Tune alone")


def wait_for(condition: Callable[[], Any], limit_s: float = TIMEOUT_S) -> float:
    """Return the seconds until a condition holds; infinite if it does not in time."""
    start = time.monotonic()
    while time.monotonic() - start < limit_s:
        if condition():
            return time.monotonic() - start
        time.sleep(POLL_S)
    return float("inf")


def placement_groups() -> set[str]:
    """Return the ids of the placement groups that hold resources."""
    import ray

    table = ray.util.placement_group_table()
    return {key for key, group in table.items() if group["state"] == "CREATED"}


def stop_imf_ray(work: Path, options: Sequence[str]) -> float:
    """Return the seconds from the stop request to the removal of the workers' placement group."""
    import ray

    from imf_ray.sweep.sweep_dir import SweepDir

    address = f"cluster.address={ray.get_runtime_context().gcs_address}"
    command = [sys.executable, "-m", "imf_ray.tune", *OPTIONS, address, f"storage_path={work}"]
    driver = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
    try:
        sweep_dir = SweepDir(work / "sweep")
        wait_for(lambda: any(trial.newest_checkpoint() for trial in sweep_dir.trials()))
        (trial,) = (trial for trial in sweep_dir.trials() if trial.newest_checkpoint())
        group = trial.read_workers()[0]["placement_group"]
        assert group in placement_groups()
        trial.request_stop()
        return wait_for(lambda: group not in placement_groups())
    finally:
        driver.kill()
        driver.wait()


def stop_tune(work: Path) -> float:
    """Return the seconds from the sweep's end to the removal of its workers' placement group."""
    from ray import tune
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def trial(params: dict[str, Any]) -> None:
        def loop() -> None:
            (work / "started").touch()
            time.sleep(TIMEOUT_S)

        trainer = TorchTrainer(
            loop,
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(name="inner", storage_path=str(work)),
        )
        threading.Thread(target=trainer.fit, daemon=True).start()
        wait_for((work / "started").exists)
        tune.report({"step": 1})
        time.sleep(TIMEOUT_S)

    before = placement_groups()
    tune.Tuner(
        tune.with_resources(trial, tune.PlacementGroupFactory([{"CPU": 0.5}])),
        run_config=tune.RunConfig(
            name="outer", storage_path=str(work), verbose=0, stop={"step": 1}
        ),
    ).fit()
    return wait_for(lambda: placement_groups() == before, LEFT_BEHIND_S)


def run_case(kind: str, dashboard: bool, options: Sequence[str]) -> None:
    """Measure one case in a cluster started by this process."""
    prepare_environment(own_cluster=True)

    import ray

    with tempfile.TemporaryDirectory(dir="/tmp") as work:
        ray.init(
            address="local",
            num_cpus=CPUS,
            include_dashboard=dashboard,
            log_to_driver=False,
            _temp_dir=f"{work}/ray",
        )
        runs = Path(work) / "runs"
        runs.mkdir()
        seconds = stop_imf_ray(runs, options) if kind == KINDS[0] else stop_tune(runs)
        print(json.dumps(seconds))
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument(
        "--case", nargs=2, metavar=("KIND", "DASHBOARD"), help="measure only this case"
    )
    parser.add_argument("options", nargs="*", metavar="key=value", help="for the sweep")
    arguments = parser.parse_intermixed_args()
    if arguments.case:
        run_case(arguments.case[0], arguments.case[1] == "on", arguments.options)
        return
    print("| dashboard | " + " | ".join(KINDS) + " |", "|---|---|---|", sep="\n")
    for dashboard in ("off", "on"):
        cells = []
        for kind in KINDS:
            case = [
                sys.executable,
                "-m",
                "benchmarks.early_stop_latency",
                "--case",
                kind,
                dashboard,
            ]
            seconds_measured = []
            for _ in range(arguments.times):
                done = subprocess.run(
                    [*case, *arguments.options], check=True, stdout=subprocess.PIPE, text=True
                )
                seconds_measured.append(json.loads(done.stdout.splitlines()[-1]))
            cells.append(
                ", ".join(
                    f"{s:.1f} s" if s < LEFT_BEHIND_S else "left behind" for s in seconds_measured
                )
            )
        print(f"| {dashboard} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
