"""A SwanLab server for tests. It accepts every key, and keeps what runs upload.

It answers the requests that a run and `swanlab sync` of swanlab 0.10.3 make.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USER = "someone"
LOGIN = {"sid": "id", "expiredAt": "2099-01-01T00:00:00.000Z", "userInfo": {"username": USER}}
CREATED_AT = "2026-01-01T00:00:00Z"


@dataclass
class UploadedRun:
    """What the launches of one run have uploaded."""

    project: str
    options: dict[str, Any]
    """The first launch's request: name, group (`cluster`), tags (`labels`) and id (`cuid`)."""
    num_launches: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    scalars: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    """Step and value of each point, by chart."""
    videos: list[tuple[int, str]] = field(default_factory=list)
    """Step and caption of each video."""
    sections: dict[str, str] = field(default_factory=dict)
    """Section of each chart."""
    state: str = "RUNNING"


class FakeSwanLab:
    """The content of the server."""

    def __init__(self) -> None:
        self.is_down = False
        """True: requests are not answered."""
        self.runs: dict[str, UploadedRun] = {}
        self.unknown_requests: list[str] = []
        self._lock = threading.Lock()

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Return the status and the content of the answer to a request."""
        with self._lock:
            match [method, *path.partition("?")[0].removeprefix("/api").strip("/").split("/")]:
                case ["GET", ""]:
                    return 200, {}
                case ["POST", "login", "api_key"]:
                    return 200, LOGIN
                case ["GET", "project", user, project]:
                    return 200, {
                        "cuid": project,
                        "name": project,
                        "path": f"/{user}/{project}",
                        "group": {"username": user},
                        "_count": {"experiments": len(self.runs)},
                    }
                case ["POST", "project", _, project, "experiment"]:
                    run = self.runs.setdefault(body["cuid"], UploadedRun(project, body))
                    run.num_launches += 1
                    return 201 if run.num_launches == 1 else 200, {**body, "slug": body["cuid"]}
                case ["GET", "project", _, _, "runs", _]:
                    return 200, {"createdAt": CREATED_AT}
                case ["GET", "house", "metrics", "summaries", _, run_id]:
                    charts = self.runs[run_id].scalars.items()
                    steps = [{"key": key, "step": max(points)[0]} for key, points in charts]
                    return 200, {"scalar": steps}
                case ["PUT", "project", _, _, "runs", run_id, "profile"]:
                    self.runs[run_id].config |= body.get("config", {})
                case ["PUT", "project", _, _, "runs", run_id, "state"]:
                    self.runs[run_id].state = body["state"]
                case ["POST", "experiment", run_id, "columns"]:
                    sections = {column["key"]: column["sectionName"] for column in body}
                    self.runs[run_id].sections |= sections
                case ["POST", "house", "metrics"]:
                    self._add_metrics(body)
                case ["POST", "resources", *_]:
                    return 200, {"urls": [f"{body['url']}/upload/{name}" for name in body["paths"]]}
                case ["PUT", "upload", *_] | ["POST", "house", "experiments", _, "heartbeat"]:
                    pass
                case _:
                    self.unknown_requests.append(f"{method} {path}")
                    return 404, {"message": "unknown request"}
            return 200, {}

    def _add_metrics(self, body: Any) -> None:
        run = self.runs[body["experimentId"]]
        for metric in body["metrics"]:
            if body["type"] == "scalar":
                run.scalars[metric["key"]].append((metric["index"], metric["data"]))
            elif body["type"] == "media":
                run.videos.append((metric["index"], metric["more"][0]["caption"]))


@contextmanager
def fake_swanlab_server() -> Iterator[tuple[str, FakeSwanLab]]:
    """Yield the URL and the content of a server that listens on this machine."""
    content = FakeSwanLab()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            data = self.rfile.read(int(self.headers.get("content-length") or 0))
            if content.is_down:
                self.close_connection = True
                return
            is_json = self.headers.get("content-type") == "application/json"
            body = json.loads(data) if is_json else {}
            if isinstance(body, dict):
                body["url"] = url
            status, answer = content.answer(self.command, self.path, body)
            encoded = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        do_GET = do_POST = do_PUT = _handle  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield url, content
    finally:
        server.shutdown()
        server.server_close()
