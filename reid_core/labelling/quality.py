"""How good a clustering is: by its own graph, and by the usual scores where true ids are known."""

import numpy as np
from scipy.sparse import csr_array
from sklearn import metrics

from reid_core.labelling.jaccard import Graph


def label_free_score(graph: Graph, label: np.ndarray) -> float:
    """A silhouette on the Jaccard graph: the mean over images of (a - b) / max(a, b), in [-1, 1].

    a is the mean similarity 1 - d of an image to its graph neighbours (pairs within ``graph.eps``)
    of its own label, b the largest such mean over other labels; a mean over none is 0. An outlier
    neighbour is a label of its own. Outliers and images without neighbours count 0.

    Args:
        graph: N images.
        label: (N,) int, -1 for outliers.

    O(E) time and memory.
    """
    own = _single_outliers(label)
    shape = (graph.count, graph.count)
    similarity = csr_array((1.0 - graph.distance, (graph.row, graph.col)), shape=shape)
    similarity += similarity.T
    member = csr_array((np.ones(len(own)), (np.arange(len(own)), own)))
    mean = (similarity @ member).tocoo()
    mean.data /= ((similarity > 0) @ member).tocoo().data  # the same places: 1 - d >= 1 - eps > 0
    image, other = mean.coords[0], mean.coords[1] != own[mean.coords[0]]
    a, b = np.zeros(graph.count), np.zeros(graph.count)
    a[image[~other]] = mean.data[~other]
    np.maximum.at(b, image[other], mean.data[other])
    most = np.maximum(a, b)
    score = np.divide(a - b, most, out=np.zeros(graph.count), where=(label >= 0) & (most > 0))
    return float(score.mean())


def clustering_quality(label: np.ndarray, pid: np.ndarray) -> dict[str, float]:
    """Agreement of pseudo labels with true ids, for reports only.

    Args:
        label: (N,) int, -1 for outliers.
        pid: (N,) int, true ids.

    Returns:
        ``ari``, ``ami``, ``fmi``, ``v_measure`` and ``purity``, each twice: ``*_clustered`` of the
        clustered images alone, ``*_singletons`` with every outlier a cluster of its own. 1 is
        perfect; NaN where there is no image to score.
    """
    kept = label >= 0
    return _scores(label[kept], pid[kept], "clustered") | _scores(
        _single_outliers(label), pid, "singletons"
    )


def _single_outliers(label: np.ndarray) -> np.ndarray:
    """Give every outlier a label of its own, after those in use."""
    return np.where(label < 0, label.max(initial=-1) + 1 + np.arange(len(label)), label)


def _scores(label: np.ndarray, pid: np.ndarray, kind: str) -> dict[str, float]:
    scores = {
        "ari": metrics.adjusted_rand_score,
        "ami": metrics.adjusted_mutual_info_score,
        "fmi": metrics.fowlkes_mallows_score,
        "v_measure": metrics.v_measure_score,
        "purity": _purity,
    }
    return {
        f"{name}_{kind}": float(score(pid, label)) if len(label) else float("nan")
        for name, score in scores.items()
    }


def _purity(pid: np.ndarray, label: np.ndarray) -> float:
    """The share of images that have the commonest id of their cluster."""
    table = metrics.cluster.contingency_matrix(pid, label, sparse=True)
    return table.max(axis=0).sum() / len(pid)
