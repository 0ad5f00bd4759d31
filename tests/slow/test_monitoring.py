"""Grafana's dashboards show a real sweep: a real Prometheus answers all of their queries."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.configs import TINY_AGENT, TINY_TRAINING
from tests.helpers.grafana import MONITORING, queries, variables
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


@pytest.mark.skipif(PROMETHEUS is None, reason="needs Debian's package prometheus")
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
                    query.filled_in("monitored", RATE_INTERVAL_S, range_s), start, end
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
