"""Finds the state, the action and the cameras of a data set that has names of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from imf_ray.data.running_stats import RunningStats
from imf_ray.errors import UserError

STATE, ACTION = "state", "action"
"""Keys of `data.features` for the state and the action. Every other key is a camera."""
_SLICE = re.compile(r"(.+)\[([0-9]*):([0-9]*)\]")
"""A part of a vector, such as `state[0:2]`."""


@dataclass(frozen=True)
class UsualNames:
    """Names that a format has by convention."""

    states: tuple[tuple[str, ...], ...]
    """Vectors that are put together as the state, in the order in which they are tried."""
    actions: tuple[tuple[str, ...], ...]
    camera_name: Callable[[str], str]
    """Returns the short name of a camera."""


@dataclass(frozen=True)
class UsableFeatures:
    """The features that a policy can use."""

    state: tuple[str, ...]
    """Vectors, or parts of vectors such as `state[0:2]`."""
    actions: Mapping[str, tuple[str, ...]]
    cameras: Mapping[str, str]
    missing: Mapping[str, str]
    """Required features that are not there, with the reason."""

    @property
    def vectors(self) -> tuple[str, ...]:
        """The state and the actions, each once."""
        return tuple(dict.fromkeys([*self.state, *self.actions["joint"]]))


def find_features(
    vectors: Collection[str],
    cameras: Collection[str],
    option: Mapping[str, list[str]],
    usual: UsualNames,
) -> UsableFeatures:
    """Return what `data.features` names, and for the rest what has the usual names.

    Args:
        vectors, cameras: names of the vectors and of the images that the data set has.
        option: value of `data.features`.

    Raises:
        UserError: the option names a feature that is not there, or of another kind.
    """
    for key, names in option.items():
        is_vector = key in (STATE, ACTION)
        allowed = vectors if is_vector else cameras
        unknown = [name for name in names if split_part(name)[0] not in allowed]
        if unknown or not names or (not is_vector and len(names) > 1):
            kind = "vectors" if is_vector else "one camera"
            raise UserError(
                f"data.features={{{key}: [{', '.join(names)}]}} must name {kind} of the data set, "
                f"which has {', '.join(allowed) or 'none'}"
            )
    missing: dict[str, str] = {}
    chosen: dict[str, tuple[str, ...]] = {}
    for key, conventions in ((STATE, usual.states), (ACTION, usual.actions)):
        present = [names for names in conventions if set(names) <= set(vectors)]
        if key in option:
            chosen[key] = tuple(option[key])
        elif present:
            chosen[key] = present[0]
        else:
            chosen[key] = conventions[0]
            usually = " or ".join(" and ".join(names) for names in conventions)
            missing[conventions[0][0]] = (
                f"it has no {key} with the usual name {usually}. Set data.features={{{key}: "
                f"[NAME]}} with one or more of {', '.join(vectors) or 'none'}"
            )
    named = {camera: names[0] for camera, names in option.items() if camera not in (STATE, ACTION)}
    others = {usual.camera_name(name): name for name in cameras if name not in named.values()}
    return UsableFeatures(chosen[STATE], {"joint": chosen[ACTION]}, {**others, **named}, missing)


def split_part(name: str) -> tuple[str, slice]:
    """Return the vector and the dimensions that a name stands for: all, or those in brackets."""
    match = _SLICE.fullmatch(name)
    if match is None:
        return name, slice(None)
    start, stop = (int(text) if text else None for text in match.groups()[1:])
    return match[1], slice(start, stop)


def take_part(name: str, values: np.ndarray) -> np.ndarray:
    """Return the dimensions of a vector (T, D) that a name stands for.

    Raises:
        UserError: the vector does not have them.
    """
    vector, dims = split_part(name)
    part = values[:, dims]
    if not part.shape[1] or (dims.stop or 0) > values.shape[1]:
        raise UserError(
            f"{name} names dimensions that {vector} does not have: it is {values.shape[1]} wide"
        )
    return part


def vector_stats(name: str, values: np.ndarray) -> RunningStats:
    """Return the statistics of a vector (T, D) as float32.

    Raises:
        UserError: it has numbers that are not finite. The message names the first one.
    """
    with np.errstate(over="ignore"):  # a number too large for float32 becomes infinite
        numbers = values.astype(np.float32)
    invalid = np.argwhere(~np.isfinite(numbers))
    if len(invalid):
        step, dim = invalid[0]
        raise UserError(
            f"{name} has NaN or infinite values, the first at step {step} in dimension {dim}"
        )
    return RunningStats.from_array(numbers)
