"""Normalization inside the agent. The statistics are buffers and thus part of a checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

NORMALIZATION_TYPES = ("min_max", "mean_std", "identity")
MIN_RANGE = 1e-4
"""Range (max - min) below which a dimension counts as constant and is not scaled."""
EE_QUATERNION_SLICES = (slice(3, 7), slice(11, 15))
"""Quaternions in an end-effector action. Each of two arms has xyz (3), wxyz (4), gripper (1)."""
POSE_DIM = 7
"""Width of a pose: xyz (m) and quaternion wxyz."""
_STATISTICS = ("min", "max", "mean", "std")
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalizer(nn.Module):
    """Maps a vector to the network's scale and back, each dimension separately.

    "min_max" maps [min, max] to [-1, 1], "mean_std" maps to zero mean and unit standard deviation,
    "identity" does not scale. A dimension whose range is below `MIN_RANGE` is only centred.

    Quaternions (wxyz) keep their scale in every mode. `normalize` flips them to the hemisphere of
    their mean, because q and -q are the same rotation. In a fixed hemisphere (w > 0), similar
    rotations with w near 0, such as those of a tool that points down, could get opposite signs. The
    fixed hemisphere is used only without statistics.
    `unnormalize` returns quaternions of unit length.

    Args:
        dim: number of dimensions D.
        mode: one of `NORMALIZATION_TYPES`.
        stats: "min", "max", "mean" and "std", each (D,). If None, nothing is scaled until a state
            dict is loaded.
        quaternions: slices of the vector that hold quaternions.

    Raises:
        ValueError: an unknown mode, or statistics that are missing, misshapen or not finite.
    """

    min: Tensor
    max: Tensor
    mean: Tensor
    std: Tensor
    _scaled: Tensor

    def __init__(
        self,
        dim: int,
        mode: str = "min_max",
        stats: Mapping[str, Any] | None = None,
        quaternions: Sequence[slice] = (),
    ) -> None:
        super().__init__()
        if mode not in NORMALIZATION_TYPES:
            raise ValueError(
                f"normalization_type={mode!r} is unknown; choose one of "
                f"{', '.join(NORMALIZATION_TYPES)}"
            )
        self.mode = mode
        self.quaternions = tuple(quaternions)
        neutral = {"min": -1.0, "max": 1.0, "mean": 0.0, "std": 1.0}
        for name in _STATISTICS:
            value = (
                torch.full((dim,), neutral[name]) if stats is None else _statistic(stats, name, dim)
            )
            self.register_buffer(name, value)
        scaled = torch.ones(dim, dtype=torch.bool)
        for dims in self.quaternions:
            scaled[dims] = False
        self.register_buffer("_scaled", scaled, persistent=False)

    def normalize(self, x: Tensor) -> Tensor:
        """Map real units (..., D) to the network's scale."""
        x = self._map_quaternions(x, self._to_hemisphere)
        center, scale = self._center_and_scale()
        return (x - center) / scale

    def unnormalize(self, x: Tensor) -> Tensor:
        """Map the network's scale (..., D) to real units; quaternions get unit length."""
        center, scale = self._center_and_scale()
        return self._map_quaternions(
            x * scale + center, lambda q, _: nn.functional.normalize(q, dim=-1)
        )

    def statistics(self) -> dict[str, Tensor]:
        """Return copies of the statistics on the CPU, in the form of the constructor's `stats`."""
        return {name: getattr(self, name).detach().cpu().clone() for name in _STATISTICS}

    def _center_and_scale(self) -> tuple[Tensor, Tensor]:
        if self.mode == "min_max":
            center, scale = (self.max + self.min) / 2, (self.max - self.min) / 2
        elif self.mode == "mean_std":
            center, scale = self.mean, self.std
        else:
            center, scale = torch.zeros_like(self.mean), torch.ones_like(self.std)
        varies = (self.max - self.min) >= MIN_RANGE
        return center.where(self._scaled, 0.0), scale.where(self._scaled & varies, 1.0)

    def _to_hemisphere(self, quaternions: Tensor, dims: slice) -> Tensor:
        """Flip quaternions (..., 4) to the hemisphere of their mean."""
        mean = self.mean[dims]
        center = torch.where(mean.any(), mean, mean.new_tensor([1.0, 0.0, 0.0, 0.0]))
        return torch.where((quaternions @ center)[..., None] < 0, -quaternions, quaternions)

    def _map_quaternions(self, x: Tensor, function: Callable[[Tensor, slice], Tensor]) -> Tensor:
        if not self.quaternions:
            return x
        x = x.clone()
        for dims in self.quaternions:
            x[..., dims] = function(x[..., dims], dims)
        return x


def pose_quaternion_slices(num_poses: int, start: int = 0) -> tuple[slice, ...]:
    """Return the slices of the quaternions of consecutive poses that start at dimension `start`."""
    offsets = range(start, start + num_poses * POSE_DIM, POSE_DIM)
    return tuple(slice(offset + 3, offset + POSE_DIM) for offset in offsets)


def join_poses(
    batch: Mapping[str, Any], objects: Sequence[str], first: str | None = None
) -> Tensor:
    """Concatenate batch[first] (..., D), if `first` is given, and the poses (..., 7) of objects.

    Raises:
        ValueError: an object is missing from batch["object_poses"].
    """
    poses = batch.get("object_poses", {})
    missing = [name for name in objects if name not in poses]
    if missing:
        raise ValueError(
            f"object_poses of {', '.join(missing)} are missing (given: {', '.join(poses) or 'none'}"
            "); provide them or remove them from privileged_pose_objects and aux_pose_objects"
        )
    parts = [] if first is None else [batch[first]]
    return torch.cat([*parts, *(poses[name] for name in objects)], dim=-1)


def join_pose_stats(
    stats: Mapping[str, Any], objects: Sequence[str], first: str | None = None
) -> dict[str, Tensor]:
    """Join the statistics of the vectors that `join_poses` joins.

    Raises:
        ValueError: a part or one of its statistics is missing, misshapen or not finite.
    """
    parts = {} if first is None else {first: stats.get(first, {})}
    poses = stats.get("object_poses", {})
    joined = {}
    for name in _STATISTICS:
        vectors: dict[str, Any] = {
            part: _statistic(values, name, len(values.get(name, ())))
            for part, values in parts.items()
        }
        vectors["object_poses"] = {
            pose: _statistic(values, name, POSE_DIM) for pose, values in poses.items()
        }
        joined[name] = join_poses(vectors, objects, first)
    return joined


def split_pose_stats(
    joined: Mapping[str, Tensor], objects: Sequence[str], start: int = 0
) -> dict[str, dict[str, Tensor]]:
    """Split joined statistics by object. The poses start at dimension `start`."""
    stats = {}
    for index, pose in enumerate(objects):
        dims = slice(start + index * POSE_DIM, start + (index + 1) * POSE_DIM)
        stats[pose] = {name: values[dims] for name, values in joined.items()}
    return stats


class ImageNormalizer(nn.Module):
    """Maps uint8 images to floats with the mean and standard deviation of ImageNet."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN))
        self.register_buffer("std", torch.tensor(_IMAGENET_STD))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (..., H, W, 3) uint8 to (..., 3, H, W) float.

        Raises:
            ValueError: the images are not uint8.
        """
        if images.dtype != torch.uint8:
            raise ValueError(f"images are {images.dtype}; pass uint8 in [0, 255]")
        scaled = (images.to(self.mean.dtype) - 255 * self.mean) / (255 * self.std)
        return scaled.movedim(-1, -3)


def _statistic(stats: Mapping[str, Any], name: str, dim: int) -> Tensor:
    if name not in stats:
        raise ValueError(
            f"stats lack {name!r}; provide {', '.join(_STATISTICS)}, each of shape ({dim},)"
        )
    value = torch.as_tensor(stats[name], dtype=torch.float32).clone()
    if value.shape != (dim,) or not value.isfinite().all():
        raise ValueError(
            f"stats[{name!r}] has shape {tuple(value.shape)}; provide ({dim},) finite numbers"
        )
    return value
