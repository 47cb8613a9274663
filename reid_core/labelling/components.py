"""DBSCAN on a graph by torch: the labels of dbscan.py, on a GPU.

N images, E edges: each pair in both directions. Tested on torch's CPU device, not run on a GPU.
"""

import numpy as np
import torch
from torch import Tensor

from reid_core.hardware import default_device
from reid_core.labelling.jaccard import Graph


def graph_dbscan_torch(
    graph: Graph, eps: float, min_samples: int, device: str | torch.device | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """``dbscan.dbscan`` on a device: same arguments, same result.

    Args:
        graph: all pairs within ``graph.eps``.
        eps: radius, at most ``graph.eps``; compared as float32.
        min_samples: images within ``eps`` of a core point, itself included.
        device: where to compute; a CUDA device when there is one, else the CPU.

    Returns:
        label: (N,) int64, -1 for outliers.
        is_core: (N,) bool.

    O((N + E) log N) time; about 16 N + 100 E bytes on the device.
    """
    edge = edges(graph, eps).to(device or default_device())
    is_core = torch.bincount(edge[0], minlength=graph.count) + 1 >= min_samples
    root = smallest_linked(edge[:, is_core[edge].all(0)], graph.count)
    return number_clusters(root, is_core, edge).cpu().numpy(), is_core.cpu().numpy()


def edges(graph: Graph, eps: float) -> Tensor:
    """The pairs within ``eps`` in both directions, (2, E) int64."""
    near = graph.distance <= np.float32(eps)
    pair = torch.from_numpy(np.stack([graph.row[near], graph.col[near]])).long()
    return torch.cat([pair, pair.flip(0)], dim=1)


def smallest_linked(edge: Tensor, count: int) -> Tensor:
    """The smallest row that a path of edges (2, E) leads to, from each row: (count,) int64.

    Every row points to itself or a smaller one. Where an edge joins two ends of pointers, the
    larger one is pointed to the smaller; then every row is pointed to the end of its pointers.
    """
    root = torch.arange(count, device=edge.device)
    while edge.numel():
        root.scatter_reduce_(0, edge.amax(0), edge.amin(0), "amin")
        while not torch.equal(root, end := root[root]):
            root = end
        edge = root[edge]
        edge = edge[:, edge[0] != edge[1]]
    return root


def number_clusters(root: Tensor, is_core: Tensor, edge: Tensor) -> Tensor:
    """Labels in order of the clusters' smallest core rows, -1 for outliers: (N,) int64.

    Args:
        root: (N,) int64, of core points the smallest core row of their cluster.
        is_core: (N,) bool.
        edge: (2, E) int64, both directions; a border point takes its smallest cluster.
    """
    label = torch.full_like(root, len(root))  # larger than any cluster
    label[is_core] = root[is_core].unique(return_inverse=True)[1]
    point, core = edge[:, ~is_core[edge[0]] & is_core[edge[1]]]
    label = label.scatter_reduce(0, point, label[core], "amin")
    return label.masked_fill_(label == len(root), -1)
