"""Exports a policy from a training checkpoint: `imf-ray export checkpoint=CHECKPOINT DIR`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from imf_ray.cli import run_command
from imf_ray.command import Command
from imf_ray.errors import UserError
from imf_ray.folders import display
from imf_ray.schema import Config
from imf_ray.storage import authoritative_path, display_path, download, local_dir
from imf_ray.terminal import console


def main(config: Config, overrides: Sequence[str], arguments: Sequence[str]) -> str:
    """Export the policy of a training checkpoint to the new folder DIR.

    CHECKPOINT may be a run; its best checkpoint is exported. checkpoint=CHECKPOINT is the same.
    DIR gets the averaged (EMA) weights if the checkpoint has them, otherwise the trained weights,
    and the options of agent, data and task. It can be evaluated and shared. Training cannot resume
    from it, because the optimizer's state is left out.
    """
    from imf_ray.rollout.policy_spec import PolicyKind, PolicySpec
    from imf_ray.training.checkpoint import export_policy

    paths = [*([] if config.checkpoint is None else [config.checkpoint]), *arguments]
    if len(paths) != 2:
        example = [*paths[:2], *["RUN/checkpoint_00001000", "DIR"][len(paths) :]]
        raise UserError(
            f"A checkpoint and a new folder are needed, but {len(paths)} paths are given. Usage: "
            f"imf-ray export {shlex.join(example)}"
        )
    policy = PolicySpec.parse(paths[0]).resolve()
    if policy.kind != PolicyKind.CHECKPOINT:
        raise UserError(f"{paths[0]} cannot be exported: it has no weights.")
    policy.check_path(config.storage_path)
    checkpoint = policy.local_path
    download(checkpoint)
    exported = export_policy(checkpoint, local_dir(paths[1])).path
    size = sum(path.stat().st_size for path in exported.iterdir())
    console.print(f"Exported to {display_path(exported)} ({size / 1e6:.1f} MB)", soft_wrap=True)
    return f"evaluate {display(authoritative_path(exported))} evaluate.num_episodes=100"


COMMAND = Command(
    "export",
    main,
    examples=(
        "runs/transfer my_policy",
        "s3://bucket/runs/transfer/checkpoint_00006000 my_policy",
    ),
    positional="CHECKPOINT DIR",
)


if __name__ == "__main__":
    sys.exit(run_command(COMMAND, sys.argv[1:]))
