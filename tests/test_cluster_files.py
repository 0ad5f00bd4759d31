"""The cluster file is one that Ray accepts."""

from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]


def test_cluster_yaml_is_valid_for_ray() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert config["min_workers"] == config["max_workers"] == len(config["provider"]["worker_ips"])
    validate_config(prepare_config(config))


def test_cluster_commands_follow_the_readme() -> None:
    text = (ROOT / "cluster.yaml").read_text()
    readme = (ROOT / "README.md").read_text()
    assert "libegl1 libgl1-mesa-dri libopengl0" in text
    assert "libegl1 libgl1-mesa-dri libopengl0" in readme
    assert "RAY_AUTH_MODE=token" in text and "RAY_AUTH_MODE=token" in readme
