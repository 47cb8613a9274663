"""Gloo, by which ranks without GPUs talk, on the network that Ray uses.

By itself it takes the address of the host's name, which many a Linux maps to loopback: ranks on different machines
then never meet.
"""

import os

import psutil
import ray
from ray.train.torch import TorchConfig


class ProcessGroup(TorchConfig):
    """Ray's settings of the process group of the ranks; with gloo they listen where their node does."""

    @property
    def backend_cls(self) -> type:
        return _OnOwnNetwork


class _OnOwnNetwork(TorchConfig().backend_cls):
    def on_start(self, worker_group, backend_config) -> None:  # noqa: ANN001  Ray's own types are private
        worker_group.execute(use_network_of_node)
        super().on_start(worker_group, backend_config)


def use_network_of_node() -> None:
    """Point gloo to the interface that has this node's address; what the user has set stays."""
    address = ray.util.get_node_ip_address()
    for interface, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
