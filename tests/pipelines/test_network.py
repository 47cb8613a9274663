"""Which interface gloo takes; that ranks on machines apart meet by it is shown in ``test_faults``."""

import os
from types import SimpleNamespace

import psutil
import pytest
import ray

from pipelines.nodes.network import use_network_of_node

NAME = "GLOO_SOCKET_IFNAME"
FOUND = {"lo": ["127.0.0.1", "::1"], "eth0": ["10.0.0.7"], "ib0": ["02:00", "10.1.0.7"]}


@pytest.mark.parametrize(
    ("address", "set_before", "expected"),
    [
        ("10.1.0.7", None, "ib0"),
        ("127.0.0.1", None, "lo"),
        ("10.1.0.7", "eth0", "eth0"),
        ("8.8.8.8", None, None),  # behind a translated address: gloo's own choice
    ],
)
def test_gloo_takes_the_interface_of_the_node_s_address(
    monkeypatch: pytest.MonkeyPatch, address: str, set_before: str | None, expected: str | None
) -> None:
    there = {k: [SimpleNamespace(address=a) for a in v] for k, v in FOUND.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: there)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: address)
    monkeypatch.setenv(NAME, set_before or "")
    if set_before is None:
        monkeypatch.delenv(NAME)
    use_network_of_node()
    assert os.environ.get(NAME) == expected
    monkeypatch.delenv(NAME, raising=False)
