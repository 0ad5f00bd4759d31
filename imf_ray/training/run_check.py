"""Checks a run before it starts: its options, its data and its initial weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from imf_ray.agents.initial_weights import InitialWeights
from imf_ray.schema import Config
from imf_ray.training.data_defaults import describe_followed, resolve_config
from imf_ray.training.run_dir import RunDir
from imf_ray.training.run_identity import PreparedRun
from imf_ray.training.trainer import prepare_run, starting_weights


@dataclass(frozen=True)
class CheckedRun:
    """A run that can start."""

    prepared: PreparedRun
    initial: InitialWeights | None
    """Weights of a new run; None if all weights start untrained, or if the run resumes."""
    followed: str | None
    """A line that names the options that follow the data set, if there are any."""

    def describe(self) -> Iterator[str]:
        """Yield lines about the options, the data and the initial weights."""
        if self.followed is not None:
            yield self.followed
        yield self.prepared.describe()
        if self.initial is not None:
            yield self.initial.describe()


def check_run(config: Config, overrides: Sequence[str], run_dir: RunDir) -> CheckedRun:
    """Check everything that can be checked before Ray starts.

    Raises:
        UserError: see `prepare_run` and `starting_weights`.
    """
    resolved = resolve_config(config, overrides)
    return CheckedRun(
        prepare_run(resolved),
        starting_weights(resolved, run_dir),
        describe_followed(config, resolved),
    )
