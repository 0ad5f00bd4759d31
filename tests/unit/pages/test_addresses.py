"""Addresses of the board, and the lines that say how to reach it."""

from __future__ import annotations

from pathlib import Path

import pytest

from imf_ray.pages import addresses
from imf_ray.pages.addresses import (
    JOB_VARIABLE,
    POD_VARIABLE,
    SSH_VARIABLE,
    describe_address,
    host_names,
    is_allowed_host,
    is_loopback,
)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(addresses.socket, "gethostname", lambda: "node1")
    monkeypatch.setattr(addresses.socket, "getfqdn", lambda: "node1.Cluster.lan")
    monkeypatch.setattr(addresses, "NAMESPACE_FILE", tmp_path / "namespace")


def test_on_this_machine_the_address_is_enough() -> None:
    assert describe_address("127.0.0.1", 8270, "", {}) == "Live page: http://127.0.0.1:8270/"
    text = describe_address("::1", 8271, "a b ü", {})
    assert text == "Live page: http://[::1]:8271/a%20b%20%C3%BC/"


@pytest.mark.parametrize("variable", [JOB_VARIABLE, SSH_VARIABLE])
def test_a_job_and_an_ssh_session_say_how_to_reach_the_page(variable: str) -> None:
    assert describe_address("127.0.0.1", 8270, "sweep", {variable: "x"}).splitlines() == [
        "Live page: http://127.0.0.1:8270/sweep/",
        "From another machine, open the same address after: ssh -N -L 8270:127.0.0.1:8270 node1",
    ]


def test_a_pod_says_how_to_forward_the_port(tmp_path: Path) -> None:
    variables = {POD_VARIABLE: "10.0.0.1", JOB_VARIABLE: "{}"}
    text = describe_address("127.0.0.1", 8270, "", variables)
    assert "kubectl port-forward --namespace default node1 8270:8270" in text
    (tmp_path / "namespace").write_text("robots\n")
    text = describe_address("127.0.0.1", 8270, "", variables)
    assert "--namespace robots " in text and "ssh" not in text


@pytest.mark.parametrize(("host", "shown"), [("0.0.0.0", "node1"), ("10.1.2.3", "10.1.2.3")])
def test_an_open_port_is_a_warning(host: str, shown: str) -> None:
    first, second = describe_address(host, 8270, "", {SSH_VARIABLE: "x"}).splitlines()
    assert first == f"Live page: http://{shown}:8270/"
    assert second.startswith("Everyone who reaches port 8270 of this machine can read it.")


def test_loopback_addresses() -> None:
    hosts = ("127.0.0.1", "127.1.2.3", "::1", "localhost", "0.0.0.0", "10.0.0.1", "example.org")
    assert [is_loopback(host) for host in hosts] == [True] * 4 + [False] * 3


def test_names_of_this_machine_are_allowed_if_others_may_reach_it() -> None:
    assert host_names("127.0.0.1") == {"localhost"}
    assert host_names("0.0.0.0") >= {"localhost", "node1", "node1.cluster.lan"}
    assert host_names("Robot.lan") >= {"robot.lan"}


def test_a_host_header_is_an_address_or_a_known_name() -> None:
    names = {"localhost", "node1"}
    for header in ("localhost", "LOCALHOST:1", "node1:80", "10.0.0.1:8", "[::1]", "[::1]:80"):
        assert is_allowed_host(header, names), header
    for header in ("", "evil.org", "node1.evil.org:80", "10.0.0.1.evil.org", "[evil]:80"):
        assert not is_allowed_host(header, names), header
