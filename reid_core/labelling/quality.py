"""How good a clustering is: by its own graph, and by the usual scores where true ids are known."""

import numpy as np
from scipy.sparse import csr_array

from reid_core.labelling.jaccard import Graph


def label_free_score(graph: Graph, label: np.ndarray) -> float:
    """How well clusters and graph agree: the mean over images of an F score, in [0, 1].

    The similarity of a pair is 1 - d, and 0 where the pair is not in the graph. The score of an
    image is the harmonic mean of two numbers: its mean similarity to the others of its cluster, low
    where clusters were merged, and the share of all its similarity that lies in its cluster, low
    where they were split. Outliers and images without neighbours in their cluster count 0.

    Args:
        graph: N images. Scores of different radii compare on one graph only.
        label: (N,) int, -1 for outliers.

    O(N + E) time and memory.
    """
    similarity, count = 1.0 - graph.distance, graph.count
    cluster = single_outliers(label)
    inside = cluster[graph.row] == cluster[graph.col]
    own, whole = (
        np.bincount(graph.row, weight, count) + np.bincount(graph.col, weight, count)
        for weight in (similarity * inside, similarity)
    )
    mates = np.bincount(cluster)[cluster] - 1
    score = np.divide(2 * own, whole + mates, out=np.zeros(count), where=own > 0)
    return float(score.mean())


def silhouette(graph: Graph, label: np.ndarray) -> float:
    """The silhouette (Rousseeuw 1987) with d = 1 for pairs that are not in the graph, in [-1, 1].

    Its mean over images: (b - a) / max(a, b), where a is the mean distance to the others of the
    own cluster and b the smallest mean distance to another cluster. Outliers belong to no cluster;
    they and clusters of one count 0, and so does a clustering with fewer than two clusters.

    Args:
        graph: N images.
        label: (N,) int, -1 for outliers.

    O(N + E) time and memory.
    """
    clusters = label.max(initial=-1) + 1
    if clusters < 2:
        return 0.0
    shape = (graph.count, graph.count)
    similarity = csr_array((1.0 - graph.distance, (graph.row, graph.col)), shape=shape)
    kept = np.flatnonzero(label >= 0)
    size = np.bincount(label[kept])
    member = csr_array((np.ones(len(kept)), (kept, label[kept])), shape=(graph.count, clusters))
    total = ((similarity + similarity.T) @ member).tocoo()  # of an image to each cluster
    image, cluster = total.coords
    own = label[image] == cluster
    a, b = np.zeros(graph.count), np.zeros(graph.count)  # mean similarities: distance is 1 - them
    a[image[own]] = total.data[own] / (size[cluster[own]] - 1)
    np.maximum.at(b, image[~own], total.data[~own] / size[cluster[~own]])
    longest = 1 - np.minimum(a, b)
    counts = (label >= 0) & (size[label] > 1) & (longest > 0)
    score = np.divide(a - b, longest, out=np.zeros(graph.count), where=counts)
    return float(score.mean())


def clustering_quality(label: np.ndarray, pid: np.ndarray) -> dict[str, float]:
    """Agreement of pseudo labels with true ids, for reports only.

    Args:
        label: (N,) int, -1 for outliers.
        pid: (N,) int, true ids.

    Returns:
        ``ari``, ``ami``, ``fmi``, ``v_measure``, ``pairwise_f`` and ``purity``, each twice:
        ``*_clustered`` of the clustered images alone, ``*_singletons`` with every outlier a cluster
        of its own. 1 is perfect; NaN where there is no image to score.
    """
    kept = label >= 0
    return _scores(label[kept], pid[kept], "clustered") | _scores(
        single_outliers(label), pid, "singletons"
    )


def single_outliers(label: np.ndarray) -> np.ndarray:
    """Give every outlier a label of its own, after those in use."""
    return np.where(label < 0, label.max(initial=-1) + 1 + np.arange(len(label)), label)


def _scores(label: np.ndarray, pid: np.ndarray, kind: str) -> dict[str, float]:
    from sklearn import metrics  # in functions, as SciPy's statistics come with it: 1.3 s

    scores = {
        "ari": metrics.adjusted_rand_score,
        "ami": metrics.adjusted_mutual_info_score,
        "fmi": metrics.fowlkes_mallows_score,
        "v_measure": metrics.v_measure_score,
        "pairwise_f": _pairwise_f,
        "purity": _purity,
    }
    return {
        f"{name}_{kind}": float(score(pid, label)) if len(label) else float("nan")
        for name, score in scores.items()
    }


def _pairwise_f(pid: np.ndarray, label: np.ndarray) -> float:
    """Harmonic mean of precision and recall of the pairs that share a label; 1 without any pair."""
    from sklearn.metrics.cluster import pair_confusion_matrix

    (_, false), (missed, true) = pair_confusion_matrix(pid, label)
    return 2 * true / (2 * true + false + missed) if false + missed else 1.0


def _purity(pid: np.ndarray, label: np.ndarray) -> float:
    """The share of images that have the commonest id of their cluster."""
    from sklearn.metrics.cluster import contingency_matrix

    table = contingency_matrix(pid, label, sparse=True)
    return table.max(axis=0).sum() / len(pid)
