"""Grafana's dashboards and the configuration of Prometheus and Grafana in `deploy/monitoring`."""

from __future__ import annotations

import importlib
import json
import re
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from imf_ray.metrics_export import METRICS, PREFIX, RANK, SWEEP, TRIAL, Kind
from tests.helpers.grafana import MONITORING, dashboards, queries, variables

RAY_METRICS = {
    "ray_node_cpu_utilization",
    "ray_node_gpus_utilization",
    "ray_node_mem_total",
    "ray_node_mem_used",
    "ray_object_store_memory",
}
"""Metrics of Ray that the dashboards show."""
SCHEMA_VERSION = 41
"""Version of the dashboards' JSON schema, that of Grafana 11.6."""
NAME = re.compile(r"\bray_[a-z_]+")


def _metric(series: str) -> str:
    """Return the name in `METRICS` of a time series; histograms have a suffix."""
    name = series.removeprefix(f"ray_{PREFIX}")
    histogram = name.removesuffix("_bucket")
    return histogram if histogram in METRICS else name


def test_every_metric_is_on_a_dashboard_and_every_name_on_one_exists() -> None:
    shown = {name for query in queries() for name in NAME.findall(query.expression)}
    shown |= {name for _, _, query in variables() for name in NAME.findall(query)}
    assert {name for name in shown if not name.startswith(f"ray_{PREFIX}")} == RAY_METRICS
    own = {_metric(name) for name in shown - RAY_METRICS}
    assert own == set(METRICS)


def test_queries_use_only_tags_that_their_metrics_have() -> None:
    for query in queries():
        names = [name for name in NAME.findall(query.expression) if name not in RAY_METRICS]
        for metric in map(_metric, names):
            tags = {"le", SWEEP, TRIAL, *METRICS[metric].tags}
            grouped = re.findall(r"\bby \(([^)]*)\)", query.expression)
            used = {tag.strip() for group in grouped for tag in group.split(",")}
            assert used <= tags, (query, metric)
            is_bucket = "_bucket{" in query.expression
            assert is_bucket == (METRICS[metric].kind is Kind.HISTOGRAM), query
            if RANK in METRICS[metric].tags and METRICS[metric].kind is Kind.GAUGE:
                assert query.expression.startswith(("max by", "sum(max by")), query


def test_the_files_are_what_the_script_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(MONITORING))
    made = importlib.import_module("make_dashboards").make_dashboards()
    files = (MONITORING / "grafana/dashboards").iterdir()
    assert {file.name: file.read_text() for file in files} == made


def _with_keys_of(template: Any, value: Any) -> Any:
    """Return a JSON value without the keys that the template does not have."""
    if isinstance(template, dict) and isinstance(value, dict):
        return {k: _with_keys_of(template[k], v) for k, v in value.items() if k in template}
    if isinstance(template, list) and isinstance(value, list):
        return [_with_keys_of(*pair) for pair in zip(template, value, strict=True)]
    return value


@pytest.mark.parametrize("name", dashboards())
def test_a_dashboard_has_the_types_of_grafanas_schema(name: str) -> None:
    """Grafana's own models read it and write every key and value again, with further defaults."""
    register_default_plugins()  # the models of the kinds of panels and of Prometheus' queries
    board = dashboards()[name]
    written = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    assert _with_keys_of(board, written) == board
    assert board["schemaVersion"] == SCHEMA_VERSION and board["uid"].startswith("imf-ray-")


@pytest.mark.parametrize("name", dashboards())
def test_every_panel_explains_itself_and_fits(name: str) -> None:
    board = dashboards()[name]
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["title"] and panel["description"].endswith("."), panel["title"]
        unit = panel["fieldConfig"]["defaults"].get("unit")
        units = {"s", "percentunit", "short", "bytes", "Bps"}
        assert unit in units or panel["type"] == "table", panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)
        box = panel["gridPos"]
        assert box["x"] + box["w"] <= 24
        cells = {
            (x, y)
            for x in range(box["x"], box["x"] + box["w"])
            for y in range(box["y"], box["y"] + box["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
    names = [variable["name"] for variable in board["templating"]["list"]]
    assert names == ["datasource", "sweep", "trial"]


def _read(path: str) -> Any:
    return yaml.safe_load((MONITORING / path).read_text())


def test_the_servers_listen_on_this_machine_only_at_the_ports_that_ray_expects() -> None:
    services = _read("compose.yaml")["services"]
    assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
    grafana = services["grafana"]["environment"]
    assert (grafana["GF_SERVER_HTTP_ADDR"], grafana["GF_SERVER_HTTP_PORT"]) == ("127.0.0.1", "3000")
    assert grafana["GF_SECURITY_ALLOW_EMBEDDING"] == "true"
    assert grafana["GF_AUTH_BASIC_ENABLED"] == "false"  # no login with the default password
    for service in services.values():
        assert "ports" not in service and re.fullmatch(r".+:v?[\d.]+", service["image"])
    (source,) = _read("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert (source["name"], source["url"]) == ("Prometheus", "http://127.0.0.1:9090")
    interval = _read("prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval


def test_everything_that_compose_mounts_exists() -> None:
    services = _read("compose.yaml")["services"]
    mounts = [volume.split(":") for service in services.values() for volume in service["volumes"]]
    inside = {target: source for source, target, *_ in mounts}
    for source in inside.values():
        assert not source.startswith("./") or (MONITORING / source).exists(), source
    for provider in _read("grafana/provisioning/dashboards/dashboards.yaml")["providers"]:
        path = provider["options"]["path"]
        assert any(path.startswith(target) for target in inside), path
