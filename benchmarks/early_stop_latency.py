"""How soon the workers of a trial that is stopped early are free, with us and with Tune alone.

    python -m benchmarks.early_stop_latency data.dataset_dir=data/demo

Each case has a cluster of its own, with and without the dashboard. Ours: `imf_ray.tune` as a user
types it, whose first trial is asked to stop after its first checkpoint, as a scheduler asks it.
Tune alone: a trial that runs a `TorchTrainer`, and is stopped by `stop=`. Measured is the time
until the workers' placement group is gone.
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

CPUS, POLL_S, PATIENCE_S = 4, 0.1, 600.0
LEFT_S = 60.0
"""A place that is held so long after the stop is called left behind."""
OPTIONS = (
    "search_space=quickstart",
    "run_name=sweep",
    "train.max_steps=100000",
    "train.save_freq=20",
    "tune.max_concurrent_trials=1",
)
KINDS = ("imf_ray", "Tune alone")


def wait_for(condition: Callable[[], Any], limit_s: float = PATIENCE_S) -> float:
    """Seconds until a condition holds; infinite if it does not in time."""
    begun = time.monotonic()
    while time.monotonic() - begun < limit_s:
        if condition():
            return time.monotonic() - begun
        time.sleep(POLL_S)
    return float("inf")


def held() -> set[str]:
    """The placement groups that hold something."""
    import ray

    table = ray.util.placement_group_table()
    return {key for key, group in table.items() if group["state"] == "CREATED"}


def stop_ours(work: Path, options: Sequence[str]) -> float:
    """Seconds from the request to the end of the place of a trial's workers."""
    import ray

    from imf_ray.sweep.sweep_dir import SweepDir

    address = f"cluster.address={ray.get_runtime_context().gcs_address}"
    command = [sys.executable, "-m", "imf_ray.tune", *OPTIONS, address, f"storage_path={work}"]
    driver = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
    try:
        sweep_dir = SweepDir(work / "sweep")
        wait_for(lambda: any(trial.newest_checkpoint() for trial in sweep_dir.trials()))
        (trial,) = (trial for trial in sweep_dir.trials() if trial.newest_checkpoint())
        place = trial.read_workers()[0]["placement_group"]
        assert place in held()
        trial.request_stop()
        return wait_for(lambda: place not in held())
    finally:
        driver.kill()
        driver.wait()


def stop_stock(work: Path) -> float:
    """Seconds from the end of the sweep to that of the place of its only trial's workers."""
    from ray import tune
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def trial(params: dict[str, Any]) -> None:
        def loop() -> None:
            (work / "begun").touch()
            time.sleep(PATIENCE_S)

        trainer = TorchTrainer(
            loop,
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(name="inner", storage_path=str(work)),
        )
        threading.Thread(target=trainer.fit, daemon=True).start()
        wait_for((work / "begun").exists)
        tune.report({"step": 1})
        time.sleep(PATIENCE_S)

    before = held()
    tune.Tuner(
        tune.with_resources(trial, tune.PlacementGroupFactory([{"CPU": 0.5}])),
        run_config=tune.RunConfig(
            name="outer", storage_path=str(work), verbose=0, stop={"step": 1}
        ),
    ).fit()
    return wait_for(lambda: held() == before, LEFT_S)


def run_case(kind: str, dashboard: bool, options: Sequence[str]) -> None:
    """Measure one case, in a cluster of this process."""
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
        home = Path(work) / "runs"
        home.mkdir()
        seconds = stop_ours(home, options) if kind == KINDS[0] else stop_stock(home)
        print(json.dumps(seconds))
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--case", nargs=2, metavar=("KIND", "DASHBOARD"), help="be one case")
    parser.add_argument("options", nargs="*", metavar="key=value", help="for the sweep")
    arguments = parser.parse_intermixed_args()
    if arguments.case:
        run_case(arguments.case[0], arguments.case[1] == "on", arguments.options)
        return
    print("| dashboard | " + " | ".join(KINDS) + " |", "|---|---|---|", sep="\n")
    for dashboard in ("off", "on"):
        cells = []
        for kind in KINDS:
            case = [sys.executable, "-m", "benchmarks.early_stop_latency", "--case", kind, dashboard]
            found = []
            for _ in range(arguments.times):
                done = subprocess.run(
                    [*case, *arguments.options], check=True, stdout=subprocess.PIPE, text=True
                )
                found.append(json.loads(done.stdout.splitlines()[-1]))
            cells.append(", ".join(f"{s:.1f} s" if s < LEFT_S else "left behind" for s in found))
        print(f"| {dashboard} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
