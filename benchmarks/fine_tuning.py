"""Trains from the weights of a policy and from scratch, and compares the success by updates.

    python -m benchmarks.fine_tuning --task transfer --data DIR --runs DIR --out DIR

The same command resumes a training that was stopped. `--only-table` makes the table and the curve
of the runs that are there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from imf_ray.figures import plain_names

POLICY = "policies/sim_transfer"
VALIDATION = (
    "train.rollout_validate_on_checkpoint=true",
    "train.rollout_num_episodes=50",
    "train.save_freq=250",
    "train.keep_last_k=20",
    "train.use_swanlab=false",
)
INSERT = ["task=sim_air_insert", "agent.aux_pose_objects=[]"]
TASKS: dict[str, dict[str, list[str]]] = {
    "transfer": {
        "encoders": [f"train.init_from={POLICY}", "train.init_parts=encoders"],
        "scratch": [],
    },
    "insert": {
        "insert_from_transfer": [*INSERT, f"train.init_from={POLICY}"],
        "insert_scratch": INSERT,
    },
}
"""Options of each training, by the task and the name of the run."""
LABELS = {
    "encoders": "encoders of the shipped policy",
    "scratch": "from scratch",
    "insert_from_transfer": "all weights of the transfer policy",
    "insert_scratch": "from scratch",
}
TARGET = 0.9
Curve = dict[int, Mapping[str, float]]
"""Metrics of the validations by update."""


def read_curve(run: Path) -> Curve:
    """Return the validations of a run that succeeded; the newest of each update."""
    lines = (run / "validations.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    return {m["step"]: m for m in metrics if "rollout/success_rate" in m}


def table(curves: Mapping[str, Curve]) -> str:
    """Return a Markdown table of the success with its interval, one row per update."""
    steps = sorted({step for curve in curves.values() for step in curve})
    header = ["updates", *(LABELS[name] for name in curves)]
    rows = [header, ["---"] * len(header)]
    for step in steps:
        cells = [
            "{rollout/success_rate:.2f} [{rollout/success_ci_low:.2f}, "
            "{rollout/success_ci_high:.2f}], {action_error:.4f}".format(**curve[step])
            if step in curve
            else ""
            for curve in curves.values()
        ]
        rows.append([str(step), *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def first_success(curve: Curve) -> str:
    """Return the first update whose validation reaches `TARGET`."""
    reached = [step for step in sorted(curve) if curve[step]["rollout/success_rate"] >= TARGET]
    return str(reached[0]) if reached else f"not in {max(curve)}"


def draw(curves: Mapping[str, Curve], path: Path) -> None:
    """Draw the success by updates with its intervals."""
    import matplotlib.pyplot as plt

    with plain_names():
        figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        for name, curve in curves.items():
            steps = sorted(curve)
            low, rate, high = (
                [curve[step][f"rollout/{key}"] for step in steps]
                for key in ("success_ci_low", "success_rate", "success_ci_high")
            )
            (line,) = axes.plot(steps, rate, marker="o", markersize=3, label=LABELS[name])
            axes.fill_between(steps, low, high, alpha=0.15, color=line.get_color())
        axes.axhline(TARGET, color="grey", linewidth=0.8, linestyle="--")
        axes.set(xlabel="updates", ylabel="success, 95 % interval", ylim=(0, 1.02))
        axes.legend(loc="lower right")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def train(name: str, options: Sequence[str], arguments: argparse.Namespace) -> None:
    """Train a run, or resume it."""
    command = [
        *(sys.executable, "-m", "imf_ray", "train", "recipe=cpu_transfer", *VALIDATION),
        f"data.dataset_dir={arguments.data}",
        f"storage_path={arguments.runs}",
        f"train.max_steps={arguments.updates}",
        f"run_name={name}",
        *options,
    ]
    subprocess.run(command, check=True)


def main() -> None:
    """Train, and write the curve; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=TASKS, default="transfer")
    parser.add_argument("--data", type=Path, help="demonstrations of the task")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--only-table", action="store_true")
    arguments = parser.parse_args()
    for name, options in TASKS[arguments.task].items():
        if not arguments.only_table:
            train(name, options, arguments)
    names = [n for n in TASKS[arguments.task] if (arguments.runs / n).is_dir()]
    curves = {name: read_curve(arguments.runs / name) for name in names}
    draw(curves, arguments.out / f"{arguments.task}.png")
    for name, curve in curves.items():
        lines = [json.dumps(curve[step]) for step in sorted(curve)]
        (arguments.out / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        print(f"{LABELS[name]}: {TARGET} first reached after {first_success(curve)} updates")
    print(table(curves))


if __name__ == "__main__":
    main()
