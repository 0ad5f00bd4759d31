"""The address of the board, and how a browser on another machine reaches it."""

from __future__ import annotations

import ipaddress
import shlex
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that Ray sets for the driver of a submitted job."""
SSH_VARIABLE, POD_VARIABLE = "SSH_CONNECTION", "KUBERNETES_SERVICE_HOST"
"""Environment variables of processes in an ssh session and in a Kubernetes pod."""
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def is_loopback(host: str) -> bool:
    """Return True if only processes of this machine reach a server on the address `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_any_address(host: str) -> bool:
    """Return True if `host` stands for all addresses of this machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def host_names(host: str) -> set[str]:
    """Return the names by which a server on the address `host` may be called."""
    if is_loopback(host):
        return {"localhost"}
    names = {"localhost", host, socket.gethostname(), socket.getfqdn()}
    return {name.lower() for name in names}


def is_allowed_host(header: str, names: set[str]) -> bool:
    """Return True if a Host header is an IP address or one of some names, with any port.

    The port may be that of a tunnel. A name that somebody else registered is refused: it could
    point to this machine, and a website under that name could then read the pages.
    """
    has_port = ":" in header and not header.endswith("]")
    name = (header.rpartition(":")[0] if has_port else header).strip("[]").lower()
    if name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def describe_address(host: str, port: int, name: str, environment: Mapping[str, str]) -> str:
    """Return the lines that say where a page is and who can reach it.

    Args:
        name: name of the run or sweep; empty for the page of the whole folder.
        environment: environment variables of the process.
    """
    shown = socket.gethostname() if is_any_address(host) else host
    shown = f"[{shown}]" if ":" in shown else shown
    path = f"{quote(name)}/" if name else ""
    lines = [f"Live page: http://{shown}:{port}/{path}"]
    if not is_loopback(host):
        lines.append(
            f"Everyone who reaches port {port} of this machine can read it. board.host=127.0.0.1 "
            "limits it to this machine."
        )
    elif POD_VARIABLE in environment:
        namespace = NAMESPACE_FILE.read_text().strip() if NAMESPACE_FILE.is_file() else "default"
        pod = shlex.quote(socket.gethostname())
        forward = f"kubectl port-forward --namespace {shlex.quote(namespace)} {pod} {port}:{port}"
        lines.append(f"From outside of the pod, open the same address after: {forward}")
    elif JOB_VARIABLE in environment or SSH_VARIABLE in environment:
        forward = f"ssh -N -L {port}:{shown}:{port} {shlex.quote(socket.gethostname())}"
        lines.append(f"From another machine, open the same address after: {forward}")
    return "\n".join(lines)
