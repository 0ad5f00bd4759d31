"""An auxiliary training loss: the prediction of object poses from the condition."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from imf_ray.agents.losses import masked_loss
from imf_ray.models.normalization import POSE_DIM, Normalizer, pose_quaternion_slices


class PoseHead(nn.Module):
    """Linear map from the condition of an observation step to object poses recorded in simulation.

    With the imitation loss alone, image encoders learn slowly to locate objects, because the arms'
    own state determines most of an action. This loss trains them directly to locate objects.
    The map is linear, so that the policy head can read the poses linearly from the condition.
    Inference does not use the pose head.

    Args:
        cond_dim: width of a step's condition, all its tokens concatenated.
        num_poses: number of objects; a pose is xyz (m) and quaternion wxyz.
        normalization_type, stats: normalization of the poses, see `Normalizer`.
    """

    def __init__(
        self,
        cond_dim: int,
        num_poses: int,
        normalization_type: str,
        stats: Mapping[str, Any] | None,
    ) -> None:
        super().__init__()
        width = num_poses * POSE_DIM
        self.normalizer = Normalizer(
            width, normalization_type, stats, pose_quaternion_slices(num_poses)
        )
        self.linear = nn.Linear(cond_dim, width)

    def forward(
        self, cond: Tensor, poses: Tensor, is_pad: Tensor, valid_count: Tensor | None
    ) -> Tensor:
        """Compute the mean absolute error of the normalized poses, a scalar.

        A sample is weighted by its number of valid actions, as in the objective. The losses of the
        parts of a batch then add up to the loss of the batch.

        Args:
            cond: (B, obs_horizon, cond_dim).
            poses: (B, obs_horizon, 7 * num_poses) in real units.
            is_pad, valid_count: (B, pred_horizon) bool and scalar, see `VLAAgent.forward`.
        """
        error = self.linear(cond) - self.normalizer.normalize(poses.to(cond.dtype))
        per_sample = error.abs().mean(dim=(1, 2))
        losses = per_sample[:, None, None].expand(*is_pad.shape, 1)
        return masked_loss(None, losses, is_pad, valid_count)
