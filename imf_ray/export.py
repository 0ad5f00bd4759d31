"""Exports a policy from a training checkpoint: `imf-ray export checkpoint=CHECKPOINT DIR`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from imf_ray.cli import run_command
from imf_ray.command import Command
from imf_ray.config import shell_override
from imf_ray.errors import UserError
from imf_ray.schema import Config
from imf_ray.storage import display_path, download, local_dir
from imf_ray.terminal import console


def main(config: Config, overrides: Sequence[str], arguments: Sequence[str]) -> None:
    """Export the policy of a training checkpoint to the new folder DIR.

    DIR gets the averaged (EMA) weights if the checkpoint has them, otherwise the trained weights,
    and the options of agent, data and task. It can be evaluated and shared. Training cannot resume
    from it, because the optimizer's state is left out.
    """
    from imf_ray.rollout.policy_spec import PolicyKind, PolicySpec
    from imf_ray.training.checkpoint import export_policy

    if config.checkpoint is None or len(arguments) != 1:
        given = config.checkpoint or next(iter(arguments), "RUN/checkpoint_00001000")
        folders = arguments if config.checkpoint else arguments[1:]
        raise UserError(
            "A checkpoint and a new folder are needed. Usage: imf-ray export "
            f"{shell_override('checkpoint', given)} {shlex.join(folders[:1]) or 'DIR'}"
        )
    policy = PolicySpec.parse(config.checkpoint).resolve()
    if policy.kind != PolicyKind.CHECKPOINT:
        raise UserError(f"checkpoint={config.checkpoint} cannot be exported: it has no weights.")
    policy.check_path(config.storage_path)
    checkpoint = policy.local_path
    download(checkpoint)
    exported = export_policy(checkpoint, local_dir(arguments[0])).path
    size = sum(path.stat().st_size for path in exported.iterdir())
    console.print(f"Exported to {display_path(exported)} ({size / 1e6:.1f} MB)", soft_wrap=True)


COMMAND = Command(
    "export",
    main,
    examples=(
        "checkpoint=runs/transfer/checkpoint_00006000 my_policy",
        "checkpoint=s3://bucket/runs/transfer/checkpoint_00006000 my_policy",
    ),
    positional="DIR",
)


if __name__ == "__main__":
    sys.exit(run_command(COMMAND, sys.argv[1:]))
