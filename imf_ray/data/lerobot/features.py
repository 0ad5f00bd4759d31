"""Finds the state, the action and the cameras among the features of a LeRobot data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from imf_ray.data.lerobot.metadata import Feature
from imf_ray.errors import UserError

STATE, ACTION = "state", "action"
"""Keys of `data.features` for the state and the action. Every other key is a camera."""
STATE_NAMES, ACTION_NAMES = ("observation.state", "state"), ("action", "actions")
"""Usual names, in the order in which they are tried."""
CAMERA_PREFIXES = ("observation.images.", "observation.image.", "observation.", "images.")
"""Prefixes that are left out of the name of a camera."""


@dataclass(frozen=True)
class UsableFeatures:
    """The features that a policy can use."""

    state: tuple[str, ...]
    actions: Mapping[str, tuple[str, ...]]
    cameras: Mapping[str, str]
    missing: Mapping[str, str]
    """Required features that are not there, with the reason."""


def find_features(
    features: Mapping[str, Feature], option: Mapping[str, list[str]]
) -> UsableFeatures:
    """Return what `data.features` names, and for the rest what has the usual names.

    Raises:
        UserError: the option names a feature that is not there, or of another kind.
    """
    vectors = [name for name, feature in features.items() if feature.is_vector]
    cameras = [name for name, feature in features.items() if feature.is_camera]
    for key, names in option.items():
        allowed = vectors if key in (STATE, ACTION) else cameras
        unknown = [name for name in names if name not in allowed]
        if unknown or not names or (key not in (STATE, ACTION) and len(names) > 1):
            kind = "vectors" if key in (STATE, ACTION) else "one camera"
            raise UserError(
                f"data.features={{{key}: {names}}} must name {kind} of the data set, which has "
                f"{', '.join(allowed) or 'none'}"
            )
    missing: dict[str, str] = {}
    parts = {}
    for key, usual in ((STATE, STATE_NAMES), (ACTION, ACTION_NAMES)):
        found = option.get(key) or [name for name in usual if name in vectors][:1]
        if not found:
            missing[usual[0]] = (
                f"the data set has no {key} named {' or '.join(usual)}. Set data.features={{{key}: "
                f"[NAME]}} with one or more of {', '.join(vectors) or 'none'}"
            )
        parts[key] = tuple(found or usual[:1])
    chosen = {camera: names[0] for camera, names in option.items() if camera not in (STATE, ACTION)}
    others = {camera_name(name): name for name in cameras if name not in chosen.values()}
    return UsableFeatures(parts[STATE], {"joint": parts[ACTION]}, {**others, **chosen}, missing)


def camera_name(feature: str) -> str:
    """Return the name of a camera, such as `top` for `observation.images.top`."""
    prefix = next((prefix for prefix in CAMERA_PREFIXES if feature.startswith(prefix)), "")
    return feature.removeprefix(prefix)
