"""Grafana's dashboards show a real sweep: a real Prometheus answers all of their queries.

Grafana itself is not part of the tests. A stub answers where Ray's dashboard asks for it.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.helpers.browser import Browser
from tests.helpers.configs import TINY_AGENT, TINY_TRAINING
from tests.helpers.grafana import MONITORING, dashboards, queries, variables
from tests.helpers.head_node import PROMETHEUS_TARGETS, start_head
from tests.helpers.prometheus import PROMETHEUS, start_prometheus

SPACE = """
fixed:
  agent: resnet_imf_attnres_multitoken
  agent.head.n_head: 2
grid:
  agent.head.n_emb: [16, 32]
"""
TRIALS = {"00000-n_emb_16", "00001-n_emb_32"}
NEEDS_GPU = {"ray_node_gpus_utilization", "ray_imf_ray_gpu_memory_bytes"}
"""Metrics that do not exist without a GPU."""
RATE_INTERVAL_S = 30


needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None, reason="needs Prometheus (apt-get install prometheus)"
)


@needs_prometheus
def test_every_query_of_the_dashboards_shows_a_sweep(demonstrations: Path, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(SPACE)
    varied = ("agent.head.n_emb", "agent.head.n_head")
    options = [o for o in (*TINY_AGENT, *TINY_TRAINING) if not o.startswith(varied)]
    options += [
        f"search_space={tmp_path}/two.yaml",
        f"data.dataset_dir={demonstrations}",
        f"storage_path={tmp_path}/runs",
        "run_name=monitored",
        "train.max_steps=240",
        "train.save_freq=80",  # the increase of a counter is known from the second validation on
        "task.max_episode_steps=60",
    ]
    folder = tmp_path / "prometheus"
    folder.mkdir()
    start = time.time()
    with start_head(require_token=False) as head:
        targets = head.folder / PROMETHEUS_TARGETS
        with start_prometheus(MONITORING / "prometheus.yml", targets, folder) as prometheus:
            done = head.submit("monitored", sys.executable, "-m", "imf_ray.tune", *options)
            assert done.returncode == 0, done.stdout + done.stderr
            time.sleep(3.0)  # until the last values are scraped
            end = time.time()
            range_s = int(end - start)
            steps = prometheus.series("ray_imf_ray_training_step", start, end)
            assert {(s["sweep"], s["trial"]) for s in steps} == {("monitored", t) for t in TRIALS}
            success = prometheus.series("ray_imf_ray_success_ratio", start, end)
            assert {s["trial"] for s in success} == {*TRIALS, "expert", "untrained"}
            without = {
                (query.dashboard, query.panel, query.expression)
                for query in queries()
                if not prometheus.series(
                    query.filled_in("monitored", min(TRIALS), RATE_INTERVAL_S, range_s), start, end
                )
            }
            for _, name, query in variables():
                metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()  # type: ignore[union-attr]
                selector = metric.replace("$sweep", "monitored")
                times = {"start": str(start), "end": str(end)}
                values = prometheus.get(f"label/{label}/values", **{"match[]": selector}, **times)
                assert {"sweep": "monitored", "trial": "00000-n_emb_16"}[name] in values
    unexpected = {q for q in without if not any(metric in q[2] for metric in NEEDS_GPU)}
    assert not unexpected
    assert len(without) == len(NEEDS_GPU) and len(queries()) > 50


class _GrafanaStub(BaseHTTPRequestHandler):
    """Answers as a healthy Grafana, and every dashboard with an empty page."""

    def do_GET(self) -> None:
        is_health = self.path == "/api/health"
        body = json.dumps({"database": "ok"}) if is_health else "<p>A dashboard</p>"
        self.send_response(200)
        self.send_header("Content-Type", "application/json" if is_health else "text/html")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def _grafana_stub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _GrafanaStub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()


@needs_prometheus
def test_the_metrics_page_of_rays_dashboard_asks_for_our_dashboard(tmp_path: Path) -> None:
    """As docs/monitoring.md says, with the variable that it names."""
    (variable,) = re.findall(
        r"(RAY_GRAFANA_DATA_DASHBOARD_UID)=(\S+)",
        (MONITORING.parents[1] / "docs/monitoring.md").read_text(),
    )
    no_nodes = tmp_path / "nodes.json"
    no_nodes.write_text("[]")
    with (
        _grafana_stub() as grafana,
        start_prometheus(MONITORING / "prometheus.yml", no_nodes, tmp_path) as prometheus,
    ):
        servers = {"RAY_GRAFANA_HOST": grafana, "RAY_PROMETHEUS_HOST": prometheus.url}
        variables = dict([variable], **servers)
        with start_head(require_token=False, variables=variables) as head, Browser() as browser:
            page = browser.open(f"{head.url}/#/metrics", width=1600)
            page.wait_for("!!document.querySelector('iframe')")
            core = page.evaluate("document.querySelector('iframe').src")
            assert core.startswith(f"{grafana}/d/rayDefaultDashboard/?")
            page.evaluate(
                "[...document.querySelectorAll('[role=tab]')]"
                ".find(tab => tab.textContent == 'Ray Data').click()"
            )
            frame = "document.querySelector('iframe').src"
            page.wait_for(f"{frame}.includes('imf-ray')")
            url = page.evaluate(frame)
            written = head.folder / "session_latest/metrics/grafana/dashboards"
            ray_uids = {json.loads(file.read_text())["uid"] for file in written.glob("*.json")}
    assert url.startswith(f"{grafana}/d/{dashboards()['sweep.json']['uid']}/sweep/?")
    assert "var-datasource=Prometheus" in url
    assert not ray_uids & {board["uid"] for board in dashboards().values()}
