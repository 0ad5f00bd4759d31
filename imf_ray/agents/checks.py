"""Checks of agent options and of a batch's noise samples."""

from collections.abc import Sequence

from torch import Tensor


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Raise a ValueError that lists the choices unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"{option}={value!r} is unknown; choose one of {', '.join(choices)}")


def flatten_noise_samples(
    key: str, samples: Tensor | None, expected: tuple[int, int]
) -> Tensor | None:
    """Reshape samples (B, noise_samples_per_obs, ...) to (B * noise_samples_per_obs, ...).

    Args:
        key: batch key of the samples, for the error message.
        expected: (B, noise_samples_per_obs).

    Raises:
        ValueError: the first two axes are not `expected`.
    """
    if samples is None:
        return None
    if samples.shape[:2] != expected:
        raise ValueError(
            f"batch[{key!r}] has shape {tuple(samples.shape)}, but noise_samples_per_obs="
            f"{expected[1]} needs {expected} as its first two axes; provide these or omit {key!r}"
        )
    return samples.flatten(0, 1)


def check_horizons(obs: int, pred: int, executed: int, inference_steps: int) -> None:
    """Raise a ValueError unless a chunk contains all actions that are executed."""
    options = {
        "obs_horizon": obs,
        "pred_horizon": pred,
        "num_action_steps": executed,
        "inference_steps": inference_steps,
    }
    for option, value in options.items():
        if value < 1:
            raise ValueError(f"{option}={value}: must be at least 1")
    available = pred - obs + 1
    if executed > available:
        raise ValueError(
            f"num_action_steps={executed} is too large: a chunk of pred_horizon={pred} actions "
            f"starts at the oldest of obs_horizon={obs} observations, so {available} of them are "
            f"not in the past; set num_action_steps <= {available} or pred_horizon >= "
            f"{executed + obs - 1}"
        )
