"""The label stage of most methods: k-NN, k-reciprocal Jaccard graph, DBSCAN.

N images, D feature size, C clusters.
"""

from time import perf_counter

import numpy as np
from scipy.sparse import csr_array

from reid_core.labelling.dbscan import dbscan
from reid_core.labelling.jaccard import jaccard_graph
from reid_core.labelling.neighbours import nearest
from reid_core.labelling.quality import label_free_score
from reid_core.method import Features, Labels

BLOCK_ROWS = 4096


def cluster(
    features: Features,
    *,
    eps: float = 0.6,
    min_samples: int = 4,
    k1: int = 30,
    k2: int = 6,
    backend: str = "auto",
) -> Labels:
    """Give every image a pseudo label; defaults are those of ClusterContrast (arXiv 2103.11568).

    Args:
        features: N unit rows in ``image_id`` order.
        eps: radius of DBSCAN on the Jaccard distance, in (0, 1).
        min_samples: images within ``eps`` of a core point, itself included.
        k1: neighbours a list, at least 1; all N when there are fewer.
        k2: lists averaged in query expansion, 1 to k1; all N when there are fewer.
        backend: of the k-NN; see ``neighbours.BACKENDS``.

    Returns:
        One level. A cluster of one image is an outlier: label -1, not core. ``metrics`` has
        ``clusters`` (a count), ``outliers`` and ``largest`` (cluster; shares of all images),
        ``label_free``, and the wall times ``seconds_knn``, ``seconds_jaccard``, ``seconds_dbscan``.

    Raises:
        UsageError: the backend is unknown or not installed.
        ValueError: an argument is out of range, or a row is not finite and of unit length.
    """
    if k1 < 1 or not 1 <= k2 <= k1:
        raise ValueError(f"need 1 <= k2 <= k1, got k1={k1}, k2={k2}; 30 and 6 are usual")
    if len(features.feature) == 0:
        raise ValueError("no image to cluster; the FEATURES table is empty")
    if (np.diff(features.image_id) <= 0).any():
        raise ValueError("image ids must increase from row to row; sort the FEATURES table")
    count = len(features.feature)
    clock = [perf_counter()]
    neighbours = nearest(features.feature, min(k1, count), backend=backend)
    clock.append(perf_counter())
    graph = jaccard_graph(features.feature, neighbours, k2=min(k2, count), eps=eps)
    clock.append(perf_counter())
    label, is_core = without_singles(*dbscan(graph, eps, min_samples))
    clock.append(perf_counter())
    size = np.bincount(label[label >= 0])
    metrics = {
        "clusters": float(len(size)),
        "outliers": float((label < 0).mean()),
        "largest": float(size.max(initial=0) / count),
        "label_free": label_free_score(graph, label),
    }
    stages = ("seconds_knn", "seconds_jaccard", "seconds_dbscan")
    metrics |= dict(zip(stages, np.diff(clock).tolist(), strict=True))
    return Labels(
        image_id=features.image_id,
        label=label[:, None],
        is_core=is_core[:, None],
        confidence=confidence(features.feature, label)[:, None],
        metrics=metrics,
    )


def without_singles(label: np.ndarray, is_core: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make outliers of clusters of one image; the others keep their order and stay contiguous.

    Args:
        label: (N,) int64, -1 for outliers.
        is_core: (N,) bool; False in the result for what became an outlier.
    """
    kept = np.bincount(label[label >= 0]) > 1
    number = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)  # label -1 reads the last place
    label = number[label]
    return label, is_core & (label >= 0)


def confidence(feature: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(1 + cosine to the mean of the own cluster) / 2, float32 (N,) in [0, 1]; 0 for outliers.

    O(N D) time; memory C D beyond the inputs.
    """
    rows = np.flatnonzero(label >= 0)
    if not len(rows):
        return np.zeros(len(label), np.float32)
    ones, shape = np.ones(len(rows), np.float32), (label.max() + 1, len(label))
    mean = csr_array((ones, (label[rows], rows)), shape=shape) @ feature
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    cosine = np.full(len(label), -1, np.float32)
    for start in range(0, len(rows), BLOCK_ROWS):
        part = rows[start : start + BLOCK_ROWS]
        cosine[part] = np.einsum("nd,nd->n", feature[part], mean[label[part]])
    return np.clip((1 + cosine) / 2, 0, 1)
