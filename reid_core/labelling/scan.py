"""Choose eps without guessing: DBSCAN at many radii on one graph. N images."""

from collections.abc import Sequence

import numpy as np

from reid_core.labelling.clusters import without_singles
from reid_core.labelling.dbscan import dbscan
from reid_core.labelling.jaccard import Graph
from reid_core.labelling.quality import (
    clustering_quality,
    label_free_score,
    silhouette,
    single_outliers,
)

STEP = 0.02  # stability compares the labels of eps with those of eps - STEP and eps + STEP


def scan_eps(
    graph: Graph, eps: Sequence[float], min_samples: int, pid: np.ndarray | None = None
) -> list[dict[str, float]]:
    """Cluster the images at every radius and say how good each clustering looks.

    Args:
        graph: all pairs within the largest radius + ``STEP``; scores of every radius use all of it.
        eps: radii.
        min_samples: images within ``eps`` of a core point, itself included; at least 1.
        pid: (N,) int true ids, for reports only; images with a negative one do not count.

    Returns:
        A row a radius, in the order given: ``eps``, ``clusters`` (of two images or more; a count),
        ``outliers`` and ``largest`` (cluster; shares of all images), ``stability`` (mean adjusted
        Rand index with the labels of the two radii ``STEP`` away, outliers as clusters of their
        own), ``label_free``, ``silhouette``; with ids also those of ``clustering_quality``.

    Raises:
        ValueError: a radius is not positive or the graph does not reach ``STEP`` beyond it, or
            ``min_samples`` is below 1.

    O(N + E) time and memory a radius.
    """
    most = max(eps) + STEP
    if not min(eps) > 0 or most > graph.eps + 1e-6:  # 0.8 + 0.02 > 0.82 in floating point
        raise ValueError(
            f"eps must lie in (0, {graph.eps - STEP:.4g}], {STEP} below what the graph holds, "
            f"got {min(eps)} to {max(eps)}"
        )
    return [_row(graph, radius, min_samples, pid) for radius in eps]


def recommend(rows: Sequence[dict[str, float]]) -> int:
    """The row with the largest label-free score; the first of equal ones."""
    return int(np.argmax([row["label_free"] for row in rows]))


def _row(graph: Graph, eps: float, min_samples: int, pid: np.ndarray | None) -> dict[str, float]:
    from sklearn.metrics import adjusted_rand_score

    below, label, above = (
        without_singles(*dbscan(graph, radius, min_samples))[0]
        for radius in (max(eps - STEP, eps / 2), eps, min(eps + STEP, graph.eps))
    )
    own = single_outliers(label)
    row = {
        "eps": eps,
        "clusters": float(label.max() + 1),
        "outliers": float((label < 0).mean()),
        "largest": float(np.bincount(label[label >= 0]).max(initial=0) / graph.count),
        "stability": float(
            np.mean([adjusted_rand_score(own, single_outliers(x)) for x in (below, above)])
        ),
        "label_free": label_free_score(graph, label),
        "silhouette": silhouette(graph, label),
    }
    if pid is not None:
        known = pid >= 0
        row |= clustering_quality(label[known], pid[known])
    return row
