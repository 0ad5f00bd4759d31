"""Packages and data files of the wheel; pyproject.toml has the rest.

The search spaces and the released policy stay at the top of the repository. The wheel carries them
in `imf_ray/_bundled`, where `imf_ray.bundled` finds them.
"""

from setuptools import find_packages, setup

BUNDLED = {
    "imf_ray._bundled.search_spaces": "search_spaces",
    "imf_ray._bundled.policies.sim_transfer": "policies/sim_transfer",
}

setup(
    packages=[*find_packages(include=["imf_ray", "imf_ray.*"]), *BUNDLED],
    package_dir=BUNDLED,
    package_data={
        "imf_ray": ["conf/*/*.yaml", "py.typed"],
        "imf_ray.pages": ["static/*", "templates/*.html"],
        **{package: ["*.json", "*.safetensors", "*.yaml"] for package in BUNDLED},
    },
)
