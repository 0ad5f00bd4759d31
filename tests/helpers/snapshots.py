"""Made-up snapshots of a sweep, run, comparison and storage folder, for tests of pages."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from imf_ray.pages.model import (
    Curve,
    DataSummary,
    Launch,
    Media,
    Pair,
    Process,
    Row,
    Snapshot,
    State,
    Success,
)
from imf_ray.rollout.confidence_intervals import wilson_interval

READ_AT = 1_796_044_800.0
STAGE_NAMES = (
    "the right gripper touches the cube",
    "the right gripper lifts the cube",
    "both grippers touch the cube",
    "the left gripper alone holds the cube",
)
TRACEBACK = """Traceback (most recent call last):
  File "imf_ray/training/loop.py", line 210, in run
    loss.backward()
FloatingPointError: the loss is not finite at step 240; lower train.lr"""


def make_success(rate: float, episodes: int = 100) -> Success:
    """Return a success rate with its Wilson interval."""
    successes = round(rate * episodes)
    low, high = wilson_interval(successes, episodes)
    return Success(successes / episodes, low, high, episodes)


def make_curves(
    rng: random.Random, final: float, num_steps: int = 1200, points: int = 60
) -> list[Curve]:
    """Return curves of loss, action error, success, learning rate and speed."""
    steps = [round(num_steps * (i + 1) / points) for i in range(points)]
    losses = [
        0.03 + 0.6 * math.exp(-5 * s / num_steps) * (1 + 0.15 * rng.gauss(0, 1)) for s in steps
    ]
    rates = [
        1e-3 * min(1.0, s / 100) * (0.5 + 0.5 * math.cos(math.pi * s / num_steps)) for s in steps
    ]
    speeds = [800 + 60 * rng.gauss(0, 1) for _ in steps]
    val_steps = [num_steps * (i + 1) // 6 for i in range(6)]
    successes = [make_success(final / (1 + math.exp(-2.0 * (i - 2))), 50) for i in range(6)]
    errors = [0.03 + 0.1 * math.exp(-0.7 * i) + 0.02 * (1 - final) for i in range(6)]
    return [
        Curve("loss", steps, losses),
        Curve("action_error", val_steps, errors),
        Curve(
            "rollout/success_rate",
            val_steps,
            [s.rate for s in successes],
            [s.low for s in successes],
            [s.high for s in successes],
        ),
        Curve("lr", steps, rates),
        Curve("samples_per_s", steps, speeds),
    ]


def make_row(number: int, params: Mapping[str, Any], rate: float, **changes: Any) -> Row:
    """Return a finished trial."""
    rng = random.Random(number)
    text = "-".join(f"{name.split('.')[-1]}_{value}" for name, value in params.items())
    row = Row(
        name=f"{number:05d}-{text}",
        label=f"{number:05d}",
        state=State.FINISHED,
        params=dict(params),
        success=make_success(rate),
        reward=900 * rate,
        stages=[min(1.0, rate + extra) for extra in (0.25, 0.2, 0.05, 0.0)],
        action_error=0.03 + 0.05 * (1 - rate),
        step=900,
        max_steps=1200,
        samples_per_s=812.5,
        wall_s=1234.0,
        cpu_s=2400.0,
        checkpoint=f"runs/sweep/trials/{number:05d}/checkpoint_000900",
        curves=make_curves(rng, rate),
        processes=[
            Process(None, 4000 + number, "node-1", (), "/tmp/ray/session/logs/worker-abc.err"),
            Process(0, 4100 + number, "node-1", ("0",), "/tmp/ray/session/logs/worker-def.err"),
        ],
        swanlab_run="https://swanlab.cn/@me/project/runs/abc",
        commands={"evaluate the best checkpoint": f"imf-ray evaluate checkpoint=runs/{number:05d}"},
    )
    return replace(row, **changes)


def rank(rows: Sequence[Row]) -> list[Row]:
    """Return rows best first; rows without success last."""
    return sorted(rows, key=lambda row: -(row.success.rate if row.success else -1.0))


BASELINES = (
    Row(
        "expert", "expert", State.FINISHED, success=make_success(1.0), reward=905.0, stages=(1,) * 4
    ),
    Row("untrained", "untrained", State.FINISHED, success=make_success(0.0), stages=(0.1, 0, 0, 0)),
)
LAUNCH = Launch(
    READ_AT - 4000,
    "imf-ray tune search_space=quickstart data.dataset_dir=data/transfer run_name=sweep",
    {"imf_ray": "0.9 (89409eb)", "Python": "3.11.9", "torch": "2.15.0", "ray": "2.60.0"},
    "node-1",
    3990,
    3900.0,
    7000.0,
)
DATA = DataSummary("data/transfer", "imf_ray", 45, 5, 18_000, ("r_vis", "top", "front"))
OPTIONS = {
    "agent": "resnet_imf_attnres",
    "train.batch_size": 64,
    "train.ema": True,
    "data.crop": None,
}


def sweep_snapshot(media: Sequence[Media] = ()) -> Snapshot:
    """Return a grid of 2 x 3 trials: finished, stopped, failed and stalled ones."""
    options = ("agent.head.n_emb", "agent.head.n_layer")
    rates = (0.31, 0.52, 0.78, 0.40, 0.71, 0.0)
    rows = [
        make_row(number, dict(zip(options, values, strict=True)), rate)
        for number, (values, rate) in enumerate(
            zip(itertools.product((64, 128), (2, 4, 6)), rates, strict=True)
        )
    ]
    rows[0] = replace(rows[0], state=State.STOPPED, step=400)
    rows[2] = replace(rows[2], media=media)
    rows[5] = replace(
        rows[5],
        state=State.FAILED,
        success=None,
        reward=None,
        stages=(),
        action_error=None,
        error=TRACEBACK,
        checkpoint=None,
        curves=[
            Curve("loss", [20, 40, 60, 80], [0.5, 40.0, 2e9, math.nan]),
        ],
    )
    return Snapshot(
        kind="sweep",
        title="quickstart",
        path="runs/quickstart",
        read_at=READ_AT,
        state=State.FAILED,
        rows=rank(rows),
        varied={"agent.head.n_emb": "n_emb", "agent.head.n_layer": "n_layer"},
        is_grid=True,
        stage_names=STAGE_NAMES,
        baselines=BASELINES,
        data=DATA,
        options=OPTIONS,
        launches=[LAUNCH],
        commands={
            "run the best again": "imf-ray train config=runs/quickstart/trials/00002/config.yaml "
            "run_name=again",
            "evaluate the best on new episodes": "imf-ray evaluate "
            "checkpoint=runs/quickstart/trials/00002/checkpoint_000900 evaluate.seed=500000",
            "resume the sweep": LAUNCH.command,
        },
    )


def running_snapshot() -> Snapshot:
    """Return a sweep with running, stalled and pending trials."""
    snapshot = sweep_snapshot()
    running = {"state": State.RUNNING, "step": 610, "time_left_s": 754.0, "last_entry_age_s": 2.0}
    rows = [
        *snapshot.rows[:2],
        replace(snapshot.rows[2], **running),
        replace(snapshot.rows[3], **running | {"state": State.STALLED, "last_entry_age_s": 912.0}),
        replace(
            make_row(6, snapshot.rows[0].params, 0),
            state=State.PENDING,
            success=None,
            step=None,
            reward=None,
            stages=(),
            action_error=None,
            curves=(),
            wall_s=None,
            cpu_s=None,
            samples_per_s=None,
            checkpoint=None,
            processes=(),
        ),
    ]
    return replace(snapshot, rows=rows, state=State.RUNNING, is_grid=False)


def random_snapshot(num: int = 64) -> Snapshot:
    """Return a random search over four options with a few failed and stopped trials."""
    rng = random.Random(1)
    rows = []
    for number in range(num):
        params = {
            "train.lr": float(f"{10 ** rng.uniform(-4.5, -2.5):.3g}"),
            "train.weight_decay": float(f"{10 ** rng.uniform(-6, -2):.3g}"),
            "agent.head.n_emb": rng.choice([64, 128, 256]),
            "agent.time_sampler": rng.choice(["uniform", "logit_normal", "endpoint_mix"]),
        }
        quality = -abs(math.log10(params["train.lr"]) + 3.3) + 0.002 * params["agent.head.n_emb"]
        rate = min(max(0.62 + 0.4 * quality + rng.gauss(0, 0.08), 0), 1)
        row = make_row(number, params, rate)
        if number % 13 == 5:
            row = replace(row, state=State.FAILED, success=None, error=TRACEBACK, stages=())
        elif number % 3 == 1:
            row = replace(row, state=State.STOPPED, step=300)
        rows.append(row)
    return replace(
        sweep_snapshot(),
        title="random",
        path="s3://bucket/runs/random",
        state=State.FINISHED,
        rows=rank(rows),
        varied={
            "train.lr": "lr",
            "train.weight_decay": "weight_decay",
            "agent.head.n_emb": "n_emb",
            "agent.time_sampler": "time_sampler",
        },
        is_grid=False,
    )


def run_snapshot(media: Sequence[Media] = ()) -> Snapshot:
    """Return a single run that has ended."""
    row = replace(make_row(0, {}, 0.82), name="cpu_transfer", label="cpu_transfer", media=media)
    return replace(
        sweep_snapshot(),
        kind="run",
        title="cpu_transfer",
        path="runs/cpu_transfer",
        state=State.FINISHED,
        rows=[row],
        varied={},
        is_grid=False,
        baselines=(),
        commands={"resume": "imf-ray train recipe=cpu_transfer", **row.commands},
    )


def comparison_snapshot() -> Snapshot:
    """Return a comparison of three policies with the expert and the untrained policy."""
    names = ("policies/sim_transfer", "policies/sim_transfer_ddim", "runs/a/checkpoint_000300")
    labels = ("sim_transfer", "sim_transfer_ddim", "a at step 300")
    rows = [
        replace(
            make_row(number, {}, rate),
            name=name,
            label=label,
            curves=(),
            processes=(),
            commands={},
            step=None,
            swanlab_run=None,
        )
        for number, (name, label, rate) in enumerate(
            zip(names, labels, (0.97, 0.83, 0.81), strict=True)
        )
    ]
    pairs = [
        Pair(names[0], names[1], 0.14, 0.06, 0.22, 0.0004, 15, 1, "sim_transfer is better"),
        Pair(names[0], names[2], 0.16, 0.08, 0.24, 0.0002, 17, 1, "sim_transfer is better"),
        Pair(
            names[1],
            names[2],
            0.02,
            -0.07,
            0.11,
            0.78,
            11,
            9,
            "not significant; about 1,900 more episodes needed",
        ),
    ]
    return replace(
        sweep_snapshot(),
        kind="comparison",
        title="comparison",
        path="runs/comparison",
        state=State.FINISHED,
        rows=rows,
        varied={},
        is_grid=False,
        pairs=pairs,
        commands={
            "compare the best two on more episodes": f"imf-ray compare {names[0]} {names[1]}"
        },
    )


def storage_snapshot(num: int = 12) -> Snapshot:
    """Return a storage folder of runs and sweeps."""
    rng = random.Random(2)
    states = [State.FINISHED] * 7 + [State.FAILED, State.STOPPED, State.RUNNING, State.STALLED]
    rows = []
    for number in range(num):
        state = rng.choice(states)
        row = make_row(number, {}, rng.random())
        error = "UserError: the data set has no camera top" if state == State.FAILED else None
        rows.append(
            replace(
                row,
                name=f"run_{number:04d}",
                label=f"run_{number:04d}",
                state=state,
                link=f"run_{number:04d}/",
                error=error,
                processes=(),
                commands={},
            )
        )
    return Snapshot(
        kind="storage",
        title="runs",
        path="runs",
        read_at=READ_AT,
        state=State.RUNNING,
        rows=rank(rows),
    )


HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&"
"""A text that would run a script on a page that does not escape it."""


def hostile_snapshot() -> Snapshot:
    """Return a sweep in which every text is `HOSTILE`."""
    snapshot = sweep_snapshot()
    rows = [
        replace(
            row,
            name=f"{row.name} {HOSTILE}",
            label=f"{index} {HOSTILE}",
            params={name: HOSTILE for name in row.params} | {HOSTILE: index},
            error=HOSTILE,
            notes=[HOSTILE],
            checkpoint=HOSTILE,
            swanlab_run=HOSTILE,
            commands={HOSTILE: HOSTILE},
            link="javascript:alert(1)" if index else f"//{HOSTILE}",
            media=[Media(HOSTILE, HOSTILE, "video/mp4", 10)],
            curves=[replace(curve, metric=f"{curve.metric}{HOSTILE}") for curve in row.curves],
            processes=[Process(0, 1, HOSTILE, (HOSTILE,), HOSTILE)],
        )
        for index, row in enumerate(snapshot.rows)
    ]
    names = [row.name for row in rows]
    return replace(
        snapshot,
        title=HOSTILE,
        path=HOSTILE,
        rows=rows,
        varied={"agent.head.n_emb": HOSTILE, HOSTILE: HOSTILE},
        stage_names=(HOSTILE,) * 4,
        pairs=[Pair(names[0], names[1], 0.1, 0.0, 0.2, 0.01, 2, 1, HOSTILE)],
        data=DataSummary(HOSTILE, HOSTILE, 1, 1, 1, (HOSTILE,), (HOSTILE,)),
        options={HOSTILE: HOSTILE},
        launches=[Launch(READ_AT, HOSTILE, {HOSTILE: HOSTILE}, HOSTILE, 1)],
        commands={HOSTILE: HOSTILE},
        media=[Media(HOSTILE, HOSTILE, "image/png", 10, b"x")],
        notes=[HOSTILE],
    )
