"""A sweep on a Ray cluster whose scheduler stops a trial."""

from __future__ import annotations

import dataclasses
import errno
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from imf_ray.cluster import ClusterSize
from imf_ray.errors import UserError
from imf_ray.files import append_line
from imf_ray.sweep.prepare import allocate_sweep, prepare_sweep
from imf_ray.sweep.runner import TrialCleanupCallback, run_sweep
from imf_ray.sweep.search_space import SearchSpace
from imf_ray.sweep.sweep_dir import SweepDir
from imf_ray.sweep.trial_record import FINISHED, STOPPED, TrialRecord
from tests.helpers.configs import LOGICAL_CPUS, TINY_AGENT, TINY_TRAINING

AGENT = "agent=resnet_imf_attnres_multitoken"
SPACE = SearchSpace(
    "two",
    grid={"train.seed": [1, 2]},
    scheduler={"asha": {"grace_period": 2, "reduction_factor": 2}},
)
TIMEOUT_S = 1200.0


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until a function returns a true value."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < TIMEOUT_S
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_that_falls_behind_is_stopped_and_frees_its_workers(
    demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler gets validations that arrive late and those of an earlier, finished trial.

    Tune's own loop fails once and is restarted.
    """
    options = [
        *(o for o in TINY_TRAINING if "max_steps" not in o),
        *(AGENT, *TINY_AGENT, f"data.dataset_dir={demonstrations}"),
        *("train.max_steps=1000", "train.save_freq=2", "tune.max_concurrent_trials=1"),
        "train.rollout_val_freq_epochs=1000",  # this test writes the validations itself
    ]
    sweep_dir = SweepDir(tmp_path / "sweep")
    sweep = prepare_sweep(SPACE, options, sweep_dir)
    good, bad = sweep.trial_dirs.values()
    good.write_record(TrialRecord(good.name, {}, FINISHED, {"step": 2}, "kept", str(good)))
    metrics_file = good.path / "metrics.jsonl"
    append_line(
        metrics_file,
        json.dumps({"step": 2, "time": 1.0, "validated_step": 2, "rollout/success_rate": 1.0}),
    )
    logged = metrics_file.read_text()

    def write_bad_validation() -> None:
        wait_for(lambda: list(bad.path.glob("checkpoint_0*")))
        line = json.dumps({"step": 2, "rollout/success_rate": 0.0})
        append_line(bad.path / "validations.jsonl", line)

    errors = [OSError(errno.ENOSPC, "No space left on device")]  # on Ray's own disk

    def fail_once(*_: Any, **__: Any) -> None:
        if errors:
            raise errors.pop()

    monkeypatch.setattr(TrialCleanupCallback, "on_trial_result", fail_once, raising=False)
    validation = threading.Thread(target=write_bad_validation)
    validation.start()
    size = ClusterSize(((float(LOGICAL_CPUS), 0.0),))
    resources, concurrent_trials = allocate_sweep(sweep, size)
    free_cpus = ray.available_resources()["CPU"]
    records = run_sweep(sweep, resources, concurrent_trials)
    validation.join()

    assert not errors
    assert [record.status for record in records] == [FINISHED, STOPPED]
    assert records[1] == bad.read_record()
    assert records[1].best_checkpoint == str(bad.list_checkpoints()[-1].path)
    assert records[1].workers and records[1].metrics["step"] >= 2
    assert metrics_file.read_text() == logged  # the finished trial was not trained again
    wait_for(lambda: ray.available_resources().get("CPU") == free_cpus)

    with pytest.raises(UserError, match="started with another search space, two"):
        prepare_sweep(dataclasses.replace(SPACE, name="three"), options, sweep_dir)
