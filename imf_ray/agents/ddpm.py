"""The diffusion agent. It learns to denoise (DDPM) and samples deterministically (DDIM).

Sources: "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239) and "Denoising Diffusion
Implicit Models" (arXiv 2010.02502); for robot policies "Diffusion Policy" (arXiv 2303.04137). The
noise schedules are those of `diffusers`.
"""

from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from imf_ray.agents.base import VLAAgent
from imf_ray.agents.checks import check_choice
from imf_ray.agents.losses import LOSS_TYPES, masked_loss

BETA_SCHEDULES = ("squaredcos_cap_v2", "linear")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
LINEAR_BETAS = 1e-4, 0.02
"""Noise variance beta of the first and the last of 1000 linear levels (arXiv 2006.11239)."""


class DDPMVLAAgent(VLAAgent):
    """`VLAAgent` with the DDPM objective and DDIM inference.

    The noisy sample at timestep k = 0 ... N - 1 is z_k = sqrt(a_k) x + sqrt(1 - a_k) e, with the
    action chunk x and noise e. A head with `takes_time_interval` (see `IMFTransformer1D`) is called
    with r = t = k / N, any other head with k itself. The effects of objective and head can thus
    be compared separately.

    Args:
        num_train_timesteps: N, the number of noise levels.
        beta_schedule: one of `BETA_SCHEDULES`. "linear" scales `LINEAR_BETAS` by 1000 / N, so that
            the last level is noise for any N.
        prediction_type: target of the head, one of `PREDICTION_TYPES`: e, x, or
            sqrt(a_k) e - sqrt(1 - a_k) x (arXiv 2202.00512). Computing x from e divides by
            sqrt(a_k), which is 5e-4 at the noisiest level, so a single step amplifies the error.
        clip_sample: clip each estimate of x to [-1, 1], the range of min-max normalized actions.
        loss_type: one of `LOSS_TYPES`.
        kwargs: see `VLAAgent`; N must be a multiple of `inference_steps`.

    Raises:
        ValueError: an impossible combination of options.
    """

    def __init__(
        self,
        *,
        num_train_timesteps: int = 100,
        beta_schedule: str = "squaredcos_cap_v2",
        prediction_type: str = "epsilon",
        clip_sample: bool = True,
        loss_type: str = "mse",
        **kwargs: Any,
    ) -> None:
        check_choice("beta_schedule", beta_schedule, BETA_SCHEDULES)
        check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        check_choice("loss_type", loss_type, LOSS_TYPES)
        _check_clipping(clip_sample, kwargs.get("normalization_type", "min_max"))
        _check_timesteps(num_train_timesteps, beta_schedule)
        self.num_train_timesteps = num_train_timesteps  # `inference_steps` is checked against it
        super().__init__(**kwargs)
        self.prediction_type = prediction_type
        self.loss_type = loss_type
        schedule = {
            "num_train_timesteps": num_train_timesteps,
            "beta_schedule": beta_schedule,
            "beta_start": LINEAR_BETAS[0] * 1000 / num_train_timesteps,
            "beta_end": LINEAR_BETAS[1] * 1000 / num_train_timesteps,
            "prediction_type": prediction_type,
            "clip_sample": clip_sample,
        }
        self._ddpm = DDPMScheduler(**schedule)
        # "trailing" starts at the noisiest timestep N - 1, as sampling from pure noise requires
        # (arXiv 2305.08891). The default starts one step later: at timestep 0 for one step.
        self._ddim = DDIMScheduler(**schedule, timestep_spacing="trailing", set_alpha_to_one=True)

    @property
    def inference_steps(self) -> int:
        """Number of network calls per chunk, a divisor of `num_train_timesteps`.

        `DDIMScheduler.step` goes down by N // K, whatever its list of timesteps holds. With another
        K, noise level and timestep of the next call would disagree.

        Raises:
            ValueError: the new value is not a divisor.
        """
        return self._inference_steps

    @inference_steps.setter
    def inference_steps(self, steps: int) -> None:
        levels = self.num_train_timesteps
        if steps < 1 or levels % steps:
            divisors = [str(k) for k in range(1, levels + 1) if levels % k == 0]
            raise ValueError(
                f"inference_steps={steps} does not divide num_train_timesteps={levels} into equal "
                f"steps; choose one of {', '.join(divisors)}"
            )
        self._inference_steps = steps

    def objective_loss(
        self,
        actions: Tensor,
        cond: Tensor,
        noise: Tensor,
        uniforms: Tensor,
        is_pad: Tensor,
        valid_count: Tensor | None = None,
    ) -> Tensor:
        """Compute the DDPM loss (arXiv 2006.11239): rho(f(z_k, k) - target).

        f is the head, rho is `loss_type`, and k is uniform over the timesteps. The noisy sample is
        z_k = sqrt(a_k) x + sqrt(1 - a_k) e. The target is e, x or a velocity (`prediction_type`).
        """
        timesteps = (uniforms[:, 0] * self.num_train_timesteps).long()
        timesteps = timesteps.clamp(max=self.num_train_timesteps - 1)
        noisy = self._ddpm.add_noise(actions, noise, timesteps)
        error = self._predict(noisy, timesteps, cond) - self._target(actions, noise, timesteps)
        return masked_loss(self.loss_type, error, is_pad, valid_count)

    def _sample_actions(self, noise: Tensor, cond: Tensor) -> Tensor:
        """Denoise in `inference_steps` DDIM steps (eta = 0), one network call each."""
        self._ddim.set_timesteps(self.inference_steps)
        sample = noise
        for timestep in self._ddim.timesteps.tolist():
            timesteps = torch.full((len(sample),), timestep, device=sample.device)
            prediction = self._predict(sample, timesteps, cond)
            sample = self._ddim.step(prediction, timestep, sample, eta=0.0).prev_sample
        return sample

    def _predict(self, sample: Tensor, timesteps: Tensor, cond: Tensor) -> Tensor:
        """Return the head's prediction (B, T, D) for samples (B, T, D) at timesteps (B,)."""
        if not self.head.takes_time_interval:
            return self.head(sample, timesteps, cond)
        time = timesteps.to(sample.dtype) / self.num_train_timesteps
        return self.head(sample, time, time, cond)

    def _target(self, actions: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Compute the target (B, T, D) of the head's prediction."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return actions
        return self._ddpm.get_velocity(actions, noise, timesteps)


def _check_clipping(clip_sample: bool, normalization_type: str) -> None:
    if clip_sample and normalization_type != "min_max":
        raise ValueError(
            f"clip_sample=True with normalization_type={normalization_type!r}: estimates would be "
            "clipped to [-1, 1], but only min-max normalization maps actions to that range; set "
            "clip_sample=False or normalization_type='min_max'"
        )


def _check_timesteps(num_train_timesteps: int, beta_schedule: str) -> None:
    min_levels = 1 if beta_schedule == "squaredcos_cap_v2" else int(1000 * LINEAR_BETAS[1]) + 1
    if num_train_timesteps < min_levels:
        raise ValueError(
            f"num_train_timesteps={num_train_timesteps} is too few for beta_schedule="
            f"{beta_schedule!r}; set num_train_timesteps >= {min_levels}"
        )
