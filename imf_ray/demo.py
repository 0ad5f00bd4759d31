"""Shows the package at work on this machine: `imf-ray demo`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from imf_ray.cli import run_command
from imf_ray.command import Command, load_command
from imf_ray.config import to_override
from imf_ray.errors import UserError
from imf_ray.schema import Config, command_options
from imf_ray.terminal import console

QUICK = "--quick"
POLICY = "policies/sim_transfer"
"""The policy that the demo shows first."""
QUICK_EPISODES, POLICY_EPISODES, NUM_DEMONSTRATIONS = 2, 4, 48
"""Episodes of the policy with and without `--quick`, and recorded demonstrations."""


class Step(NamedTuple):
    """A command that the demo runs, and what it shows."""

    title: str
    command: str
    options: Sequence[str]


def main(config: Config, overrides: Sequence[str], arguments: Sequence[str]) -> str:
    """Show a policy at work, then train and compare four policies on this machine.

    The demo runs three commands and prints each of them: evaluate shows the shipped policy
    policies/sim_transfer, collect records demonstrations of the scripted expert, and tune trains
    four small policies on them and ranks them by success. It takes about ten minutes on two CPU
    cores. All files are in storage_path/demo. What is already there is not repeated.

    With --quick, the shipped policy acts on two seeds, which takes less than a minute.
    """
    if unknown := [argument for argument in arguments if argument != QUICK]:
        raise UserError(f"`imf-ray demo` takes no path, but {shlex.join(unknown)} is given.")
    _require_settable(overrides)
    storage = f"{config.storage_path.rstrip('/')}/demo"
    cluster = [item for item in overrides if item.startswith("cluster.")]
    num_episodes = QUICK_EPISODES if QUICK in arguments else POLICY_EPISODES
    steps = [
        Step(
            f"the shipped policy hands a cube from arm to arm on {num_episodes} seeds",
            "evaluate",
            [
                f"checkpoint={POLICY}",
                f"evaluate.num_episodes={num_episodes}",
                "evaluate.video=all",
                to_override("evaluate.output_dir", f"{storage}/policy"),
                *cluster,
            ],
        )
    ]
    if QUICK not in arguments:
        steps += _learning_steps(storage, cluster)
    for number, step in enumerate(steps, start=1):
        line = shlex.join(["imf-ray", step.command, *step.options])
        console.print(f"Step {number} of {len(steps)}: {step.title}\n$ {line}", soft_wrap=True)
        started_at = time.monotonic()
        command = load_command(step.command)
        command.run(command.resolve(step.options), step.options)
        console.print(f"Step {number} took {time.monotonic() - started_at:.0f} s.\n")
    console.print(f"Video of the policy: {storage}/policy/grid.mp4", soft_wrap=True)
    if QUICK in arguments:
        return "demo"
    console.print(f"Report of the sweep, for a browser: {storage}/sweep/report.html")
    return "collect recipe=cpu_transfer && imf-ray train recipe=cpu_transfer run_name=transfer"


def _learning_steps(storage: str, cluster: Sequence[str]) -> list[Step]:
    """Return the steps that record demonstrations and train policies on them."""
    dataset = to_override("data.dataset_dir", f"{storage}/data")
    return [
        Step(
            f"the scripted expert records {NUM_DEMONSTRATIONS} demonstrations",
            "collect",
            [dataset, f"collect.num_episodes={NUM_DEMONSTRATIONS}", *cluster],
        ),
        Step(
            "four policies learn from them, two at a time, and are ranked by success",
            "tune",
            [
                "search_space=quickstart",
                dataset,
                to_override("storage_path", storage),
                "run_name=sweep",
                *cluster,
            ],
        ),
    ]


def _require_settable(overrides: Sequence[str]) -> None:
    """Raise a `UserError` if the demo does not use one of the overrides."""
    settable = command_options("demo")
    for item in overrides:
        if item.partition("=")[0] not in settable:
            raise UserError(f"{item} has no effect on the demo. Set it in one of its commands.")


COMMAND = Command(
    "demo",
    main,
    examples=(QUICK, "storage_path=/tmp/runs"),
    flags={QUICK: "show only the shipped policy, on two seeds"},
)


if __name__ == "__main__":
    sys.exit(run_command(COMMAND, sys.argv[1:]))
