"""Fixtures of the simulation tests."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from imf_ray.sim.bimanual import BimanualEnv
from imf_ray.sim.tasks.insert import SimAirInsertEnv
from imf_ray.sim.tasks.transfer import SimTransferEnv

MakeEnv = Callable[..., BimanualEnv]


@pytest.fixture
def make_env() -> Iterator[MakeEnv]:
    """Make environments, without images by default, and close them after the test."""
    made: list[BimanualEnv] = []

    def make(kind: type[BimanualEnv] = SimTransferEnv, **options: Any) -> BimanualEnv:
        made.append(kind(**{"render_images": False, **options}))
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture(params=[SimTransferEnv, SimAirInsertEnv])
def kind(request: pytest.FixtureRequest) -> type[BimanualEnv]:
    """Each task in turn."""
    return request.param
