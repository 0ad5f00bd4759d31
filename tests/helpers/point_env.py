"""A tiny environment without MuJoCo: a point in the plane is moved to a target.

Importing the module registers it, as packages of environments do.
"""

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

NEAR = 0.15
"""Distance to the target below which the point has reached it."""
IMAGE_SIZE = (12, 16)


class PointEnv(gymnasium.Env[Any, np.ndarray]):
    """A point that moves by its action.

    With `flat`, an observation is only the position. `depth` is an invalid image.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self, speed: float = 0.1, flat: bool = False, render_mode: str | None = None
    ) -> None:
        self.render_mode = render_mode
        self._flat = flat
        self.action_space = spaces.Box(np.float32([-speed, 0.0]), np.float32([speed, 2 * speed]))
        plane = spaces.Box(-1.0, 1.0, (2,), np.float64)
        image = spaces.Box(0, 255, (*IMAGE_SIZE, 3), np.uint8)
        depth = spaces.Box(0.0, 1.0, IMAGE_SIZE, np.float32)
        self.observation_space = spaces.Dict(
            {
                "camera": spaces.Dict({"wide": image, "depth": depth}),
                "robot": spaces.Dict({"position": plane, "target": plane}),
                "steps": spaces.Discrete(1000),
            }
        )
        if flat:
            self.observation_space = plane

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._position = np.zeros(2)
        self._target = self.np_random.uniform([-1.0, 0.5], [1.0, 1.0])
        self._steps = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._position = self._position + action
        self._steps += 1
        distance = float(np.linalg.norm(self._position - self._target))
        near = distance < NEAR
        return self._observation(), -distance, near, False, {"goal": {"near": near}}

    def render(self) -> np.ndarray:
        image = np.zeros((*IMAGE_SIZE, 3), np.uint8)
        image[:, : self._steps] = 250
        return image

    def _observation(self) -> Any:
        if self._flat:
            return self._position
        return {
            "camera": {"wide": self.render(), "depth": np.zeros(IMAGE_SIZE, np.float32)},
            "robot": {"position": self._position, "target": self._target},
            "steps": self._steps,
        }


gymnasium.register("imf_ray_tests/Point-v0", PointEnv, max_episode_steps=5)
