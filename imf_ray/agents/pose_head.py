"""An auxiliary task of training: telling from the condition where the task's objects are."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from imf_ray.agents.losses import masked_mean
from imf_ray.agents.normalization import POSE_DIM, Normalizer, pose_quaternion_slices


class PoseHead(nn.Module):
    """A linear map from the condition of a step to the poses of objects, which simulation records.

    Imitation alone teaches an encoder slowly where things are: most of an action follows from the
    arms' own state. The read-out asks for it directly; it is linear, so that the head finds the
    answer in the condition as plainly. Acting does not use it.

    Args:
        cond_dim: width of a step's condition, all its tokens side by side.
        num_poses: objects; a pose is xyz (m) and quaternion (wxyz).
        normalization_type, stats: of the poses, see `Normalizer`.
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
        """Mean absolute error of the normalized poses, a scalar.

        A sample counts in proportion to its valid actions, as in the objective: so the losses of a
        batch's parts add up to the batch's.

        Args:
            cond: (B, obs_horizon, cond_dim).
            poses: (B, obs_horizon, 7 * num_poses) in real units.
            is_pad, valid_count: (B, pred_horizon) and scalar, see `VLAAgent.compute_loss`.
        """
        error = self.linear(cond) - self.normalizer.normalize(poses.to(cond.dtype))
        of_sample = error.abs().mean(dim=(1, 2))
        return masked_mean(of_sample[:, None, None].expand(*is_pad.shape, 1), is_pad, valid_count)
