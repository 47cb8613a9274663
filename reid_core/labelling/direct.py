"""Pseudo labels from the features themselves, without a graph: DBSCAN and k-means. N images."""

from typing import Literal

import numpy as np

from reid_core.labelling.cuml_dbscan import cuml_class, free_bytes
from reid_core.labelling.screens import import_faiss

Metric = Literal["euclidean", "cosine"]
KMEANS_ROUNDS = 30  # of assignment and mean


def feature_dbscan(
    feature: np.ndarray, metric: Metric, eps: float, min_samples: int, gpu: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """DBSCAN on distances between features, by scikit-learn or, on a GPU, by cuML.

    Args:
        feature: (N, D) float32 unit rows.
        metric: ``euclidean`` sqrt(2 - 2 s), or ``cosine`` 1 - s, of the inner product s.
        eps: radius; above 0, at most 2.
        min_samples: images within ``eps`` of a core point, itself included; at least 1.
        gpu: by cuML (not run on a GPU); a border point between two clusters may then go to either.

    Returns:
        label: (N,) int64, -1 for outliers, numbered by the smallest core row.
        is_core: (N,) bool.

    O(N^2 D) time, memory O(pairs within ``eps``).
    """
    if gpu:
        found = cuml_class()(
            eps=eps,
            min_samples=min_samples,
            metric=metric,
            max_mbytes_per_batch=free_bytes() // 2_000_000,
            output_type="numpy",
        )
        found.fit(feature.copy())  # with the cosine metric cuML writes to its input
    else:
        from sklearn.cluster import DBSCAN

        found = DBSCAN(
            eps=eps, min_samples=min_samples, metric=metric, algorithm="brute", n_jobs=-1
        )
        found.fit(feature)
    is_core = np.zeros(len(feature), bool)
    is_core[found.core_sample_indices_] = True
    return found.labels_.astype(np.int64), is_core


def kmeans(
    feature: np.ndarray, clusters: int, seed: int, gpu: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Spherical k-means by faiss on all rows.

    Args:
        feature: (N, D) float32 unit rows.
        clusters: how many; 1 to N. Fewer labels come back where some stay empty.
        seed: of the first centres.
        gpu: on all GPUs of this process (not run on a GPU).

    Returns:
        label: (N,) int64, numbered by the smallest row.
        is_core: (N,) bool, all True.

    Raises:
        UsageError: faiss is not installed.
        ValueError: ``clusters`` is out of range.
    """
    faiss = import_faiss("cluster by density")
    count, dim = feature.shape
    if not 1 <= clusters <= count:
        raise ValueError(f"k-means: clusters must lie in 1..{count} (images), got {clusters}")
    search = faiss.Kmeans(
        dim,
        clusters,
        niter=KMEANS_ROUNDS,
        seed=seed,
        spherical=True,
        gpu=gpu,
        min_points_per_centroid=1,
        max_points_per_centroid=count,
    )
    search.train(feature)
    nearest = search.index.search(feature, 1)[1][:, 0]
    _, first, which = np.unique(nearest, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[which], np.ones(count, bool)
