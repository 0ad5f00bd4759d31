"""Normalization inside the agent: statistics are buffers, so that a checkpoint alone predicts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

NORMALIZATION_TYPES = ("min_max", "mean_std", "identity")
MIN_RANGE = 1e-4
EE_QUATERNION_SLICES = (slice(3, 7), slice(11, 15))
POSE_DIM = 7
"""A pose: xyz and quaternion (wxyz)."""
_STATISTICS = ("min", "max", "mean", "std")
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalizer(nn.Module):
    """Maps a vector quantity to the network's scale and back, dimension by dimension.

    "min_max" maps [min, max] to [-1, 1]; "mean_std" maps to zero mean and unit deviation;
    "identity" leaves the scale alone. A dimension whose range is below 1e-4 is centred and not
    scaled. Quaternions (wxyz) keep their scale in every mode. Since q and -q are the same rotation,
    going in they are turned to the hemisphere around their mean (around w without statistics: a
    fixed one would cut through rotations that the data have, as it does for a tool pointing down,
    whose w is about 0). Coming out they get unit length again.

    Args:
        dim: number of dimensions D.
        mode: one of `NORMALIZATION_TYPES`.
        stats: "min", "max", "mean" and "std", each (D,); without them the map is the identity until
            a state dict is loaded.
        quaternions: slices of the vector that hold quaternions.

    Raises:
        ValueError: for an unknown mode, or statistics that are missing, misshapen or not finite.
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
        for quaternion in self.quaternions:
            scaled[quaternion] = False
        self.register_buffer("_scaled", scaled, persistent=False)

    def normalize(self, x: Tensor) -> Tensor:
        """Real units (..., D) -> network scale (..., D)."""
        x = self._map_quaternions(x, self._to_hemisphere)
        center, scale = self._center_and_scale()
        return (x - center) / scale

    def unnormalize(self, x: Tensor) -> Tensor:
        """Network scale (..., D) -> real units (..., D); quaternions of unit length."""
        center, scale = self._center_and_scale()
        return self._map_quaternions(
            x * scale + center, lambda q, _: nn.functional.normalize(q, dim=-1)
        )

    def statistics(self) -> dict[str, Tensor]:
        """Copies of the statistics on the CPU, in the form the constructor takes."""
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

    def _to_hemisphere(self, quaternions: Tensor, place: slice) -> Tensor:
        """Quaternions (..., 4) on the side of their mean (4,)."""
        mean = self.mean[place]
        center = torch.where(mean.any(), mean, mean.new_tensor([1.0, 0.0, 0.0, 0.0]))
        return torch.where((quaternions @ center)[..., None] < 0, -quaternions, quaternions)

    def _map_quaternions(self, x: Tensor, function: Callable[[Tensor, slice], Tensor]) -> Tensor:
        if not self.quaternions:
            return x
        x = x.clone()
        for quaternion in self.quaternions:
            x[..., quaternion] = function(x[..., quaternion], quaternion)
        return x


def pose_quaternion_slices(num_poses: int, start: int = 0) -> tuple[slice, ...]:
    """Where the quaternions of consecutive poses are in a vector that has them from `start` on."""
    places = range(start, start + num_poses * POSE_DIM, POSE_DIM)
    return tuple(slice(place + 3, place + POSE_DIM) for place in places)


class ImageNormalizer(nn.Module):
    """uint8 images -> floats of about zero mean and unit deviation (ImageNet's statistics)."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN))
        self.register_buffer("std", torch.tensor(_IMAGENET_STD))

    def forward(self, images: Tensor) -> Tensor:
        """Images (..., H, W, 3) uint8 -> (..., 3, H, W) float.

        Raises:
            ValueError: if the images are not uint8.
        """
        if images.dtype != torch.uint8:
            raise ValueError(f"images are {images.dtype}; pass uint8 in [0, 255]")
        scaled = (images.to(self.mean.dtype) - 255 * self.mean) / (255 * self.std)
        return scaled.movedim(-1, -3)


def _statistic(stats: Mapping[str, Any], name: str, dim: int) -> Tensor:
    if name not in stats:
        raise ValueError(
            f"stats lack {name!r}; give {', '.join(_STATISTICS)}, each of shape ({dim},)"
        )
    value = torch.as_tensor(stats[name], dtype=torch.float32).clone()
    if value.shape != (dim,) or not value.isfinite().all():
        raise ValueError(
            f"stats[{name!r}] has shape {tuple(value.shape)}; give ({dim},) finite numbers"
        )
    return value
