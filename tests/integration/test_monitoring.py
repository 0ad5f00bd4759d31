"""Prometheus answers the queries of Grafana's dashboards. In tests/slow it scrapes a real sweep."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import cast

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.metrics import MetricWrapperBase

from imf_ray.metrics_export import METRICS, PREFIX, SWEEP, TRIAL, Kind, Metric
from tests.helpers.grafana import MONITORING, queries
from tests.helpers.prometheus import PROMETHEUS, start_prometheus

pytestmark = pytest.mark.skipif(
    PROMETHEUS is None, reason="needs Prometheus (apt-get install prometheus)"
)
TIMEOUT_S = 60


def _make(name: str, metric: Metric, registry: CollectorRegistry) -> MetricWrapperBase:
    tags = (SWEEP, TRIAL, *metric.tags)
    if metric.kind is Kind.GAUGE:
        return Gauge(f"ray_{PREFIX}{name}", metric.help, tags, registry=registry)
    if metric.kind is Kind.COUNTER:
        return Counter(f"ray_{PREFIX}{name}", metric.help, tags, registry=registry)
    return Histogram(
        f"ray_{PREFIX}{name}", metric.help, tags, registry=registry, buckets=metric.buckets
    )


def _change(metric: MetricWrapperBase, trial: str, num_tags: int) -> None:
    series = metric.labels("sweep", trial, *["0"] * num_tags)
    if isinstance(series, Histogram):
        series.observe(0.5)
    else:
        cast(Counter, series).inc()


def test_every_query_returns_the_metrics_that_it_names(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    exported = {name: _make(name, metric, registry) for name, metric in METRICS.items()}
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    targets = tmp_path / "nodes.json"
    targets.write_text(json.dumps([{"targets": [f"127.0.0.1:{server.server_port}"]}]))
    own = [query for query in queries() if PREFIX in query.expression]
    without, start = own, time.time()
    with start_prometheus(MONITORING / "prometheus.yml", targets, tmp_path) as prometheus:
        # Rates are known after some values. Prometheus reads them once a second.
        while without and time.time() < start + TIMEOUT_S:
            for name, metric in METRICS.items():
                for trial in ("trial", "expert"):
                    _change(exported[name], trial, len(metric.tags))
            time.sleep(1.0)
            end = time.time()
            without = [
                query
                for query in without
                if not prometheus.series(
                    query.filled_in("sweep", "trial", TIMEOUT_S, TIMEOUT_S), start, end
                )
            ]
    server.shutdown()
    thread.join()
    assert len(own) > 50 and not without


def test_the_configuration_is_one_of_prometheus() -> None:
    promtool = shutil.which("promtool")
    assert promtool is not None
    config = MONITORING / "prometheus.yml"
    checked = subprocess.run(
        [promtool, "check", "config", str(config)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
