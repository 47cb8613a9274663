"""The label stage of most methods: k-NN, k-reciprocal Jaccard graph, DBSCAN.

N images, D feature size, C clusters.
"""

import logging
from time import perf_counter

import numpy as np
from scipy.sparse import csr_array

from reid_core.labelling.blocks import Blocks, jaccard_of_all, nearest_of_all
from reid_core.labelling.cuml_dbscan import cuml_dbscan
from reid_core.labelling.dbscan import dbscan
from reid_core.labelling.direct import Metric, feature_dbscan
from reid_core.labelling.engine import Engine
from reid_core.labelling.jaccard import Graph, check_pairs
from reid_core.labelling.quality import label_free_score
from reid_core.labelling.tasks import Tasks
from reid_core.labels import Features, Labels

BLOCK_ROWS = 4096

logger = logging.getLogger(__name__)


def cluster(
    features: Features,
    *,
    eps: float = 0.6,
    min_samples: int = 4,
    k1: int = 30,
    k2: int = 6,
) -> Labels:
    """Give every image a pseudo label; defaults are those of ClusterContrast (arXiv 2103.11568).

    Args:
        features: N unit rows in ``image_id`` order, and what computes the labels.
        eps: radius of DBSCAN on the Jaccard distance, in (0, 1).
        min_samples: images within ``eps`` of a core point, itself included.
        k1: neighbours a list, at least 1; all N when there are fewer.
        k2: lists averaged in query expansion, 1 to k1; all N when there are fewer.

    Returns:
        One level. A cluster of one image is an outlier: label -1, not core. ``metrics`` has
        ``clusters`` (a count), ``outliers`` and ``largest`` (cluster; shares of all images),
        ``label_free``, and the wall times ``seconds_knn``, ``seconds_jaccard``, ``seconds_dbscan``.

    Raises:
        UsageError: a backend is unknown or not installed, or there is no GPU for it.
        ValueError: an argument is out of range, or a row is not finite and of unit length.
    """
    engine = features.engine
    blocks = engine.blocks(features.feature)
    graph, seconds = eps_graph(blocks, eps=eps, k1=k1, k2=k2, engine=engine)
    labels = density_labels(
        graph, features.image_id, blocks, eps=eps, min_samples=min_samples, engine=engine
    )
    labels.metrics.update(seconds)
    return labels


def cluster_directly(features: Features, metric: Metric, *, eps: float, min_samples: int) -> Labels:
    """The same by DBSCAN on a distance between the features themselves; see ``feature_dbscan``.

    O(N^2 D) time in one task whatever the blocks. ``metrics`` has no ``label_free``: there is no graph.
    """
    engine, gpu = features.engine, features.engine.on_gpu
    settings = (features.feature, metric, eps, min_samples, gpu)
    found = engine.tasks.submit(feature_dbscan, *settings, gpu=gpu)
    label, is_core = engine.tasks.get([found])[0]
    blocks = engine.blocks(features.feature)
    return labels_of(features.image_id, blocks, label, is_core, engine.tasks)


def eps_graph(
    blocks: Blocks, *, eps: float, k1: int, k2: int, engine: Engine
) -> tuple[Graph, dict[str, float]]:
    """The Jaccard graph of all images in blocks, and the wall times of its two stages.

    Raises:
        UsageError: a backend is unknown or not installed, or there is no GPU for it.
        ValueError: an argument is out of range, or a row is not finite and of unit length.
    """
    if k1 < 1 or not 1 <= k2 <= k1:
        raise ValueError(f"need 1 <= k2 <= k1, got k1={k1}, k2={k2}; 30 and 6 are usual")
    count = blocks.edges[-1]
    if not count:
        raise ValueError("no image to cluster; the FEATURES table is empty")
    k1, k2 = min(k1, count), min(k2, count)
    check_pairs(k1, k2, eps)
    gpu = engine.on_gpu
    name = "torch" if engine.knn == "auto" else engine.knn
    where = "a GPU" if engine.tasks.gpu else "CPUs"
    logger.info("k-NN by %s on %s, blocks: %d", name, where, len(blocks.feature))
    clock = [perf_counter()]
    neighbours = nearest_of_all(blocks, k1, engine.tasks, backend=engine.knn)
    clock.append(perf_counter())
    graph = jaccard_of_all(blocks, neighbours, k2=k2, eps=eps, tasks=engine.tasks, gpu=gpu)
    clock.append(perf_counter())
    return graph, dict(
        zip(("seconds_knn", "seconds_jaccard"), np.diff(clock).tolist(), strict=True)
    )


def density_labels(
    graph: Graph,
    image_id: np.ndarray,
    blocks: Blocks,
    *,
    eps: float,
    min_samples: int,
    engine: Engine,
) -> Labels:
    """DBSCAN of a graph that holds all pairs within ``eps``; see ``cluster``."""
    start = perf_counter()
    label, is_core = density(graph, eps, min_samples, engine)
    seconds = perf_counter() - start
    labels = labels_of(image_id, blocks, label, is_core, engine.tasks)
    labels.metrics["label_free"] = label_free_score(graph, labels.label[:, 0])
    labels.metrics["seconds_dbscan"] = seconds
    return labels


def density(
    graph: Graph, eps: float, min_samples: int, engine: Engine
) -> tuple[np.ndarray, np.ndarray]:
    """DBSCAN by the engine's backend: label (N,) int64, -1 outlier, and is_core (N,) bool; no cluster of one."""
    if engine.on_gpu:
        return without_singles(*cuml_dbscan(graph, eps, min_samples, tasks=engine.tasks))
    return without_singles(*dbscan(graph, eps, min_samples))


def labels_of(
    image_id: np.ndarray, blocks: Blocks, label: np.ndarray, is_core: np.ndarray, tasks: Tasks
) -> Labels:
    """Labels of one level from those of any clustering; a cluster of one image is an outlier.

    Raises:
        ValueError: the ids do not increase.
    """
    if (np.diff(image_id) <= 0).any():
        raise ValueError("image ids must increase from row to row; sort the FEATURES table")
    label, is_core = without_singles(label, is_core)
    return Labels(
        image_id=image_id,
        label=label[:, None],
        is_core=is_core[:, None],
        confidence=confidence(blocks, label, tasks)[:, None],
        metrics=share_metrics(label),
    )


def share_metrics(label: np.ndarray) -> dict[str, float]:
    """``clusters`` (a count), ``outliers`` and ``largest`` (cluster): shares of all images (N,)."""
    size = np.bincount(label[label >= 0])
    return {
        "clusters": float(len(size)),
        "outliers": float((label < 0).mean()),
        "largest": float(size.max(initial=0) / len(label)),
    }


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


def confidence(blocks: Blocks, label: np.ndarray, tasks: Tasks) -> np.ndarray:
    """(1 + cosine to the mean of the own cluster) / 2, float32 (N,) in [0, 1]; 0 for outliers.

    O(N D) time; memory C D, C the clusters that have an image in the block, and once all.
    """
    parts = [
        label[edges.start : edges.stop] for edges in map(blocks.rows, range(len(blocks.feature)))
    ]
    sums = [tasks.submit(_sums, *pair) for pair in zip(parts, blocks.feature, strict=True)]
    mean = tasks.submit(_means, label.max(initial=-1) + 1, *sums)
    cosine = [tasks.submit(_cosine, p, f, mean) for p, f in zip(parts, blocks.feature, strict=True)]
    return np.clip((1 + np.concatenate(tasks.get(cosine))) / 2, 0, 1)


def _sums(label: np.ndarray, feature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The clusters (C,) of a block, rising, and the sums (C, D) of their rows in it."""
    rows = np.flatnonzero(label >= 0)
    which, place = np.unique(label[rows], return_inverse=True)
    shape = (len(which), len(label))
    member = csr_array((np.ones(len(rows), np.float32), (place, rows)), shape=shape)
    return which, member @ feature


def _means(clusters: int, *sums: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The unit means (C, D) of all clusters."""
    mean = np.zeros((clusters, sums[0][1].shape[1]), np.float32)
    for which, total in sums:
        mean[which] += total
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return mean


def _cosine(label: np.ndarray, feature: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The cosine (N,) of every row to the mean of its cluster; -1 for outliers."""
    rows = np.flatnonzero(label >= 0)
    cosine = np.full(len(label), -1, np.float32)
    for part in np.split(rows, range(BLOCK_ROWS, len(rows), BLOCK_ROWS)):
        cosine[part] = np.einsum("nd,nd->n", feature[part], mean[label[part]])
    return cosine
