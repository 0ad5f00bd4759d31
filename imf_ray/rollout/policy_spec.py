"""Text forms of the policies that can be evaluated, as given on the command line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from imf_ray.bundled import policy_dir
from imf_ray.errors import UserError
from imf_ray.folders import (
    best_checkpoint,
    display,
    refuse_without_episodes,
    require_checkpoint,
    require_run,
)
from imf_ray.storage import is_remote, local_dir, to_local


class PolicyKind(StrEnum):
    """Kinds of policies."""

    CHECKPOINT = "checkpoint"
    """An agent with the weights of a checkpoint."""
    UNTRAINED = "untrained"
    """A checkpoint's agent with newly initialized weights: the lower baseline of a table."""
    EXPERT = "expert"
    """The task's scripted expert: the upper baseline of a table."""
    REPLAY = "replay"
    """Recorded actions, executed without using observations."""


@dataclass(frozen=True)
class PolicySpec:
    """The kind of a policy and, except for the expert, its path.

    The text forms are `CHECKPOINT_FOLDER`, `untrained:CHECKPOINT_FOLDER`, `expert` and
    `replay:PATH`, where PATH is an episode file or a folder of them.
    """

    kind: PolicyKind
    path: str = ""
    """A local path or a URL, as the user wrote it."""

    @classmethod
    def parse(cls, text: str) -> PolicySpec:
        """Make the spec of a text form; a text without a known prefix is a checkpoint folder.

        Raises:
            UserError: there is no path after a prefix.
        """
        if text == PolicyKind.EXPERT:
            return cls(PolicyKind.EXPERT)
        for kind in (PolicyKind.UNTRAINED, PolicyKind.REPLAY):
            if text == f"{kind}:":
                raise UserError(f"{text} has no path. Write {kind}:PATH.")
            if text.startswith(f"{kind}:"):
                return cls(kind, text.removeprefix(f"{kind}:"))
        return cls(PolicyKind.CHECKPOINT, text)

    def __str__(self) -> str:
        if self.kind in (PolicyKind.UNTRAINED, PolicyKind.REPLAY):
            return f"{self.kind}:{self.path}"
        return self.path if self.kind == PolicyKind.CHECKPOINT else str(self.kind)

    @property
    def short_name(self) -> str:
        """The kind, and the last two parts of the path: of a checkpoint, its run and its step."""
        kind = "" if self.kind == PolicyKind.CHECKPOINT else f"{self.kind} "
        return f"{kind}{'/'.join(Path(self.path).parts[-2:])}".strip()

    @property
    def is_agent(self) -> bool:
        """True if the policy is a checkpoint's agent, with trained or untrained weights."""
        return self.kind in (PolicyKind.CHECKPOINT, PolicyKind.UNTRAINED)

    @property
    def local_path(self) -> Path:
        """The path on this machine. For a URL it is the local copy, which may not exist yet."""
        return to_local(local_dir(self.path))

    def check_path(self, storage: str, is_run: bool = False) -> None:
        """Check that the path is a checkpoint or, for a replay, not a folder of training.

        Args:
            storage: folder of runs, in which a run that is given by its name alone is looked for.
            is_run: the path must be the folder of a run, whose checkpoints are compared.

        Raises:
            UserError: it is not. The message says what it is, and names what can be used.
        """
        if is_run and self.kind == PolicyKind.CHECKPOINT:
            require_run(self.local_path, storage, suggest=lambda run: f"checkpoint={display(run)}")
        elif self.is_agent:
            prefix = "" if self.kind == PolicyKind.CHECKPOINT else f"{self.kind}:"
            require_checkpoint(self.local_path, storage, prefix)
        elif self.kind == PolicyKind.REPLAY:
            refuse_without_episodes(self.local_path, f"{self.kind}:")

    def resolve(self, is_run: bool = False) -> PolicySpec:
        """Return the same policy with an absolute local path.

        `policies/NAME` is a policy shipped with the package, unless this folder exists in the
        working directory. The folder of a run stands for its best checkpoint.

        Args:
            is_run: see `check_path`. The path then remains that of the run.

        Raises:
            UserError: the policy is a replay of a URL.
        """
        if self.kind == PolicyKind.EXPERT:
            return self
        if self.kind == PolicyKind.REPLAY and is_remote(self.path):
            raise UserError(f"{self} is a URL, but a replay needs episodes in a local folder.")
        if not self.is_agent:
            return replace(self, path=str(local_dir(self.path)))
        folder = policy_dir(self.path)
        return replace(self, path=str(folder if is_run else best_checkpoint(folder)))


EXPERT = PolicySpec(PolicyKind.EXPERT)
