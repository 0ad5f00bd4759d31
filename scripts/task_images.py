"""Renders images of the tasks for the docs: `python scripts/task_images.py docs/images`.

They are larger than the images that policies see, and have shadows and multisampling.
"""

import sys
from pathlib import Path
from typing import NamedTuple, cast

import gymnasium
import imageio.v3 as iio

import imf_ray
from imf_ray.sim.base import SimEnv
from imf_ray.sim.factory import make_expert

SEED, IMAGE_SIZE = 3, 360


class Scene(NamedTuple):
    """A step of the expert's episode that shows the purpose of a task."""

    env_id: str
    step: int
    prefix: str
    """Prefix of the file names."""


SCENES = (
    Scene("imf_ray/SimTransfer-v0", 55, ""),  # before the grasp of the cube
    Scene("imf_ray/SimAirInsert-v0", 360, "insert_"),  # the bar is in the ring
)


def main(folder: Path) -> None:
    """Run each task's expert to its step, and write one image per camera."""
    for scene in SCENES:
        env = gymnasium.make(
            scene.env_id,
            image_size=IMAGE_SIZE,
            render_images=False,
            shadows=True,
            multisampling=True,
        )
        sim_env = cast(SimEnv, env.unwrapped)
        expert = make_expert(scene.env_id, sim_env)
        env.reset(seed=SEED)
        expert.reset()
        for _ in range(scene.step):
            env.step(expert.act()[0])
        for camera, image in sim_env.render_cameras().items():
            iio.imwrite(folder / f"{scene.prefix}{camera}.png", image)
        env.close()
    print(f"imf_ray {imf_ray.__version__}: wrote the images to {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
