"""Every test in this folder is slow: `make slow-test` runs it, and `make test` does not."""

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark each test of this folder."""
    item.add_marker(pytest.mark.slow)
