"""Distributed training of one-step robot policies on Ray.

Importing the package registers its simulated tasks with gymnasium. Torch, Ray, MuJoCo and HDF5 are
imported only when they are needed.
"""

from typing import TYPE_CHECKING, Any

from imf_ray.sim.tasks import register_envs

if TYPE_CHECKING:
    from imf_ray.policy import load_policy

__version__ = "0.2.0"
__all__ = ["__version__", "load_policy"]

register_envs()


def __getattr__(name: str) -> Any:
    """Import `load_policy` on first use, because it needs torch."""
    if name == "load_policy":
        from imf_ray.policy import load_policy

        return load_policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
