"""Compares the episodes of a data set with the options of a run.

A run uses the states, the actions of its action space, the images of its cameras and the poses of
its objects. A mismatch is a part of an episode that the run cannot use with its options, because
the part has a problem or because an option has another value. If all episodes mismatch in the same
way, the option is wrong and not the files.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imf_ray.config import to_override
from imf_ray.data.episodes import EpisodeMetadata, unwrap, whole_number
from imf_ray.data.hdf5.layouts import EE_ACTION_DIM, IMF_RAY, is_own_recording
from imf_ray.errors import UserError
from imf_ray.schema import Config
from imf_ray.storage import AnyPath


@dataclass(frozen=True)
class Mismatch:
    """A part of an episode that a run cannot use with its options."""

    reason: str
    """The part and the option that contradict each other, as a clause."""
    options: tuple[str, ...] = ()
    """Assignments `option=value` that would fit; empty if no value would."""
    common_options: tuple[str, ...] = ()
    """Assignments that would fit this episode and all others with this kind of mismatch."""
    is_damage: bool = False
    """True if the part could not be used with any value, so that the file may be the cause."""

    def is_like(self, other: Mismatch) -> bool:
        """Return True if the same values of options, or else the same repair, would help both."""
        if self.common_options:
            return self.common_options == other.common_options
        return self.options == other.options if self.options else self.reason == other.reason

    def __str__(self) -> str:
        return (
            f"{self.reason} ({' '.join(self.options)} would fit)" if self.options else self.reason
        )


def find_mismatches(info: EpisodeMetadata, config: Config) -> list[Mismatch]:
    """Return why a run cannot use an episode; empty if it can."""
    if not info.length:  # the other parts were not checked against the number of steps
        return list(_vector_mismatches(info, config))
    cameras = config.agent.camera_names
    follows_data = list(cameras) == list(config.data.camera_names)
    option = "data.camera_names" if follows_data else "agent.camera_names"
    return [
        *_vector_mismatches(info, config),
        *_camera_mismatches(info, config, option, cameras),
        *_object_mismatches(info, config),
        *_recording_mismatches(info, config),
    ]


def find_collection_mismatches(info: EpisodeMetadata, config: Config) -> list[Mismatch]:
    """Return the options of `collect` that differ from those of a recorded episode."""
    cameras = _camera_mismatches(info, config, "data.camera_names", config.data.camera_names)
    return [*cameras, *_recording_mismatches(info, config)]


def require_fitting_options(
    folder: AnyPath, mismatches: Mapping[AnyPath, Sequence[Mismatch]]
) -> None:
    """Check that no option of a run is contradicted by all episodes of a data set.

    Args:
        mismatches: the mismatches of each episode.

    Raises:
        UserError: all episodes have the same mismatch. The message names the values of options that
            fit, if there are any.
    """
    first, *others = mismatches.values() or [()]
    common = [
        mismatch
        for mismatch in first
        if all(any(mismatch.is_like(other) for other in found) for found in others)
        and (others or not mismatch.is_damage)
    ]
    if not common:
        return
    reasons = "; ".join(mismatch.reason for mismatch in common)
    options: dict[str, None] = {}
    for mismatch in common:
        is_same = all(any(mismatch.options == o.options for o in found) for found in others)
        options.update(dict.fromkeys(mismatch.options if is_same else mismatch.common_options))
    if options:
        raise UserError(
            f"The options do not fit the episodes in {folder}: {reasons}. "
            f"Set {shlex.join(options)}."
        )
    raise UserError(
        f"None of the episodes in {folder} can be used, for the same reason as "
        f"{next(iter(mismatches)).name}: {reasons}. Convert them (docs/data.md says what an "
        "episode has), or set data.dataset_dir to another data set."
    )


def find_unread(info: EpisodeMetadata, config: Config) -> dict[str, str | None]:
    """Return the parts of an episode that a run does not read, with the problem of each or None.

    Parts without a problem that another run could read are left out.
    """
    features = info.features
    used = {
        *features.state,
        *features.actions.get(config.task.action_space, ()),
        *(features.cameras.get(camera) for camera in config.agent.camera_names),
        *(features.poses.get(name) for name in config.agent.recorded_objects),
    }
    problems = {name: problem for name, problem in info.problems.items() if name not in used}
    return {**dict.fromkeys(info.unused_datasets), **problems}


def _vector_mismatches(info: EpisodeMetadata, config: Config) -> Iterable[Mismatch]:
    """Check the states, and the actions of the run's action space."""
    yield from _action_space_mismatches(info, config.task.action_space)
    actions = info.features.actions.get(config.task.action_space, ())
    for names, key in ((info.features.state, "state_dim"), (actions, "action_dim")):
        configured, stats = getattr(config.agent, key), info.vector_stats(names)
        if (problem := info.problem(names)) is not None:
            yield Mismatch(problem, is_damage=True)
        elif stats is not None and (width := len(stats.mean)) != configured:
            yield Mismatch(
                f"{' and '.join(names)} {'is' if len(names) == 1 else 'are together'} {width} "
                f"wide, but agent.{key}={configured}",
                (f"agent.{key}={width}",),
            )


def _action_space_mismatches(info: EpisodeMetadata, space: str) -> Iterable[Mismatch]:
    """Check that a file has actions of the run's action space, and that its attribute agrees."""
    if space in info.action_spaces and space != "joint":
        return  # end-effector targets have a dataset of their own, or a format of their own
    recorded = unwrap(info.attributes.get("action_space", "joint"))
    # The attribute describes /action. Other programs may name their action spaces differently.
    if info.format == IMF_RAY and str(recorded).lower() != "joint":
        is_ee = recorded == "ee"
        yield Mismatch(
            f"the attribute action_space={recorded} does not say that /action has joint targets"
            f"{'' if is_ee else ', which data.format=act takes it for'}",
            ("data.format=roboimi", "task.action_space=ee") if is_ee else ("data.format=act",),
        )
        if is_ee:
            return
    has_problem = info.problem(info.features.actions.get(space, ())) is not None
    if space in info.action_spaces or has_problem:
        return
    reason = (
        f"the files (format {info.format}) have {' and '.join(info.action_spaces) or 'no'} "
        f"actions, not those of task.action_space={space}"
    )
    options = tuple(f"task.action_space={other}" for other in info.action_spaces[:1])
    stats = info.stats.get("action")
    if info.format == "act" and stats is not None and len(stats.mean) == EE_ACTION_DIM:
        reason += (
            f". Actions {EE_ACTION_DIM} wide may be end-effector targets, which data.format=roboimi"
            " reads; only for joint targets set task.action_space=joint"
        )
        options = ("data.format=roboimi",)
    yield Mismatch(reason, options)


def _camera_mismatches(
    info: EpisodeMetadata, config: Config, option: str, cameras: Sequence[str]
) -> Iterable[Mismatch]:
    """Check the cameras that the option `option` requires."""
    size = config.task.image_size
    unusable = [camera for camera in cameras if camera not in info.images]
    if unusable:
        present = [camera for camera in cameras if camera in info.images] or [*info.images]
        reasons = info.features.camera_problems(unusable, info.problems)
        yield Mismatch(
            f"{to_override(option, list(cameras))} needs {', '.join(unusable)}, but the usable "
            f"cameras are {', '.join(info.images) or 'none'}"
            f"{''.join(f'; {reason}' for reason in reasons)}",
            (to_override(option, present),) if present else (),
            is_damage=bool(reasons),
        )
    sizes = {camera: info.cameras[camera] for camera in cameras if camera in info.images}
    others = {camera: shape for camera, shape in sizes.items() if shape != (size, size)}
    if others and not config.data.resize_images:
        recorded = ", ".join(
            f"{camera} {height}x{width}" for camera, (height, width) in others.items()
        )
        (height, width), *differing = set(sizes.values())
        is_one_square, resizing = height == width and not differing, ("data.resize_images=true",)
        yield Mismatch(
            f"the images have another size (height x width: {recorded}) than task.image_size={size}"
            ", to which data.resize_images=true scales them",
            (f"task.image_size={height}",) if is_one_square else resizing,
            common_options=resizing,
        )


def _object_mismatches(info: EpisodeMetadata, config: Config) -> Iterable[Mismatch]:
    for key in ("privileged_pose_objects", "aux_pose_objects"):
        option, requested = f"agent.{key}", getattr(config.agent, key)
        unusable = [name for name in requested if name not in info.objects]
        if unusable:
            present = [name for name in requested if name in info.objects]
            names = [info.features.poses.get(name, "") for name in unusable]
            reasons = [info.problems[name] for name in names if name in info.problems]
            yield Mismatch(
                f"{to_override(option, list(requested))} needs poses of {', '.join(unusable)}, but "
                f"the objects with usable poses are {', '.join(info.objects) or 'none'}"
                f"{''.join(f'; {reason}' for reason in reasons)}",
                (to_override(option, present),),
                is_damage=bool(reasons),
            )


def _recording_mismatches(info: EpisodeMetadata, config: Config) -> Iterable[Mismatch]:
    """Compare root attributes with options. Other programs may use the same names differently."""
    task = config.task
    if "control_hz" in info.attributes:
        recorded = info.attributes["control_hz"]
        rate = whole_number(recorded, minimum=1)
        if rate is None:
            yield Mismatch(
                f"the attribute control_hz={recorded} is not a whole number of steps per second. "
                "Correct or delete the attribute"
            )
        else:
            yield from _compare(
                {"control_hz": rate}, "control_hz", "task.control_hz", task.control_hz
            )
    if is_own_recording(info.attributes):
        yield from _compare(info.attributes, "task", "task.env_id", task.env_id)
        yield from _compare(info.attributes, "shadows", "task.shadows", task.shadows)
        yield from _compare(
            info.attributes, "multisampling", "task.multisampling", task.multisampling
        )


def _compare(
    attributes: Mapping[str, Any], name: str, option: str, value: object
) -> Iterable[Mismatch]:
    recorded = attributes.get(name, value)
    if recorded != value:
        yield Mismatch(
            f"the episodes were recorded with {name}={recorded}, but the run has {option}={value}",
            (to_override(option, recorded),),
        )
