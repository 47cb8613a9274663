"""DBSCAN (Ester et al., KDD 1996) on a graph: connected components of the core points, O(N + E).

The labels are those of ``sklearn.cluster.DBSCAN(metric="precomputed")`` on the dense distances:
clusters are numbered by their smallest core row, and a border point takes its smallest cluster.
"""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from reid_core.labelling.jaccard import Graph


def dbscan(graph: Graph, eps: float, min_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster the images of a graph by density.

    Args:
        graph: all pairs within ``graph.eps``.
        eps: radius, at most ``graph.eps``; compared as float32.
        min_samples: images within ``eps`` of a core point, itself included; at least 1.

    Returns:
        label: (N,) int64, -1 for outliers.
        is_core: (N,) bool.

    Raises:
        ValueError: ``eps`` is larger than the graph's, or ``min_samples`` below 1.
    """
    check_density(graph, eps, min_samples)
    near = graph.distance <= np.float32(eps)
    row, col = graph.row[near], graph.col[near]
    is_core = np.bincount(np.concatenate([row, col]), minlength=graph.count) + 1 >= min_samples
    label = _components(row, col, is_core)
    border = np.full(graph.count, graph.count)  # smallest cluster next to a point that is no core
    for point, core in ((row, col), (col, row)):
        edge = is_core[core] & ~is_core[point]
        np.minimum.at(border, point[edge], label[core[edge]])
    return np.where(border < graph.count, border, label), is_core


def check_density(graph: Graph, eps: float, min_samples: int) -> None:
    """Refuse what ``dbscan`` cannot do.

    Raises:
        ValueError: ``eps`` is larger than the graph's, or ``min_samples`` below 1.
    """
    if not 0 < eps <= graph.eps:
        raise ValueError(f"eps must lie in (0, {graph.eps}], what the graph holds, got {eps}")
    if min_samples < 1:
        raise ValueError(f"min_samples must be at least 1, got {min_samples}; 4 is usual")


def _components(row: np.ndarray, col: np.ndarray, is_core: np.ndarray) -> np.ndarray:
    """Components of the core points, numbered by their smallest row; -1 for other points."""
    count = len(is_core)
    edge = is_core[row] & is_core[col]
    links = coo_array((np.ones(edge.sum(), np.int8), (row[edge], col[edge])), shape=(count, count))
    part = connected_components(links, directed=False)[1]
    core = np.flatnonzero(is_core)
    _, first, which = np.unique(part[core], return_index=True, return_inverse=True)
    label = np.full(count, -1, np.int64)
    label[core] = np.argsort(np.argsort(first))[which]
    return label
