"""Renders the camera images of the documentation: `python scripts/pictures.py docs/images`."""

import sys
from pathlib import Path
from typing import NamedTuple, cast

import gymnasium
import imageio.v3 as iio

import imf_ray
from imf_ray.sim.bimanual import BimanualEnv
from imf_ray.sim.factory import make_expert

SEED, SIZE = 3, 360


class Moment(NamedTuple):
    """A step of the expert's episode that shows what the task is about."""

    env_id: str
    step: int
    prefix: str  # of the pictures' names


MOMENTS = (
    Moment("imf_ray/SimTransfer-v0", 55, ""),  # about to reach for the cube
    Moment("imf_ray/SimAirInsert-v0", 360, "insert_"),  # the bar is through the ring
)


def main(folder: Path) -> None:
    """Play each task's expert to its moment, and write one picture a camera."""
    for moment in MOMENTS:
        env = gymnasium.make(
            moment.env_id, image_size=SIZE, render_images=False, shadows=True, multisampling=True
        )
        world = cast(BimanualEnv, env.unwrapped)
        expert = make_expert(moment.env_id, world)
        env.reset(seed=SEED)
        expert.reset()
        for _ in range(moment.step):
            env.step(expert.act()[0])
        for camera, picture in world.render_cameras().items():
            iio.imwrite(folder / f"{moment.prefix}{camera}.png", picture)
        env.close()
    print(f"imf_ray {imf_ray.__version__}: wrote the pictures to {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
