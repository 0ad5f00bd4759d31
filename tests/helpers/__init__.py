"""Code shared by tests: configurations, commands, faulty environments, small clusters."""

from pathlib import Path

REPO_ROOT = Path(__file__).parents[2]
