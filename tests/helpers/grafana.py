"""Grafana's dashboards of `deploy/monitoring`: their queries, and values for their variables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.helpers import REPO_ROOT

MONITORING = REPO_ROOT / "deploy/monitoring"


@dataclass(frozen=True)
class Query:
    """One query of a panel."""

    dashboard: str
    panel: str
    expression: str
    """PromQL with Grafana's variables."""

    def filled_in(self, sweep: str, trial: str, rate_interval_s: int, range_s: int) -> str:
        """Return the expression with values of its variables."""
        text = self.expression.replace("$__rate_interval", f"{rate_interval_s}s")
        text = text.replace("$__range", f"{range_s}s")
        return text.replace("$sweep", sweep).replace("$trial", trial)


def dashboards() -> dict[str, dict[str, Any]]:
    """Return the content of each dashboard, by file name."""
    files = sorted((MONITORING / "grafana/dashboards").glob("*.json"))
    return {file.name: json.loads(file.read_text()) for file in files}


def queries() -> list[Query]:
    """Return all queries of all panels."""
    return [query for name, board in dashboards().items() for query in _queries(name, board)]


def _queries(name: str, board: dict[str, Any]) -> Iterator[Query]:
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield Query(name, panel["title"], target["expr"])


def variables() -> list[tuple[str, str, str]]:
    """Return (dashboard, name, query) of each variable that Prometheus answers."""
    return [
        (name, variable["name"], variable["query"])
        for name, board in dashboards().items()
        for variable in board["templating"]["list"]
        if variable["type"] == "query"
    ]
