"""SpCL's self-paced reliability (Ge et al., NeurIPS 2020; methods.md 2.4): which images a cluster keeps.

A cluster is independent if a slightly looser radius leaves it alone, and compact where a slightly
tighter one does. Clusters that are not independent go whole; of the others the images stay that are
as compact as any of the cluster. All the rest become outliers. The paper's scores are IoU, larger for
better; R here is 1 - IoU, smaller for better. N images, C clusters.
"""

from time import perf_counter

import numpy as np

from reid_core.labelling.clusters import density, eps_graph, labels_of
from reid_core.labelling.quality import label_free_score, single_outliers
from reid_core.labels import Features, Labels

INDEPENDENT = 0.9  # share of the first round's clusters that fixes the threshold
THRESHOLD = "independence"  # its name in the state of labels


def reliable_clusters(
    features: Features,
    radii: tuple[float, float, float],
    *,
    min_samples: int,
    k1: int,
    k2: int,
    previous: Labels | None,
) -> Labels:
    """``clusters.cluster`` at the middle radius, and of its clusters only what is reliable.

    Args:
        features: N unit rows in ``image_id`` order, and what computes the labels.
        radii: of DBSCAN, in (0, 1): tighter, the one that counts, looser.
        min_samples: images within a radius of a core point, itself included.
        k1: neighbours a list.
        k2: lists averaged in query expansion.
        previous: labels of the round before, which carry the threshold on; without one it is fixed here.

    Returns:
        Clusters in the order that they had before some went. ``state`` has the threshold once there
        was a cluster; ``metrics`` are those of ``cluster``, and ``unreliable``: the share of all
        images that lost their cluster.

    Raises:
        UsageError: a backend is unknown or not installed, or there is no GPU for it.
        ValueError: an argument is out of range, or a row is not finite and of unit length.
    """
    engine = features.engine
    blocks = engine.blocks(features.feature)
    graph, seconds = eps_graph(blocks, eps=radii[2], k1=k1, k2=k2, engine=engine)
    start = perf_counter()
    found = [density(graph, eps, min_samples, engine) for eps in radii]
    seconds["seconds_dbscan"] = perf_counter() - start
    (tighter, _), (label, is_core), (looser, _) = found
    state = {} if previous is None else previous.state
    if THRESHOLD not in state and label.max() >= 0:
        state = {THRESHOLD: independence_threshold(label, looser)}
    kept = reliable(label, tighter, looser, state.get(THRESHOLD, 0.0))  # absent: no cluster to keep
    chosen = np.where(kept, label, -1), is_core & kept
    labels = labels_of(features.image_id, blocks, *chosen, engine.tasks)
    labels.state.update(state)
    labels.metrics["unreliable"] = labels.metrics["outliers"] - float((label < 0).mean())
    labels.metrics["label_free"] = label_free_score(graph.within(radii[1]), labels.label[:, 0])
    labels.metrics.update(seconds)
    return labels


def instability(label: np.ndarray, other: np.ndarray) -> np.ndarray:
    """R: 1 - IoU of the clusters that hold each image in two clusterings, (N,) float64 in [0, 1).

    Args:
        label: (N,) int64; an outlier, -1, is a cluster of its own.
        other: likewise.

    O(N log N) time.
    """
    label, other = single_outliers(label), single_outliers(other)
    _, pair, shared = np.unique(
        label * (other.max() + 1) + other, return_inverse=True, return_counts=True
    )
    both = shared[pair]
    return 1 - both / (np.bincount(label)[label] + np.bincount(other)[other] - both)


def independence_threshold(label: np.ndarray, looser: np.ndarray) -> float:
    """The smallest R_indep of each cluster (C >= 1) in rising order, the one ``INDEPENDENT`` of the way."""
    least = np.sort(_least(label, instability(label, looser))[:-1])
    return float(least[min(len(least) - 1, round(INDEPENDENT * len(least)))])


def reliable(
    label: np.ndarray, tighter: np.ndarray, looser: np.ndarray, threshold: float
) -> np.ndarray:
    """Which images keep their cluster, (N,) bool: min R_indep <= threshold, R_comp = min R_comp.

    Args:
        label: (N,) int64, -1 outlier, which keeps none; the minima are over its clusters.
        tighter: labels at the smaller radius, for R_comp.
        looser: labels at the larger radius, for R_indep.
        threshold: largest R_indep of an independent cluster.
    """
    independent = _least(label, instability(label, looser)) <= threshold
    compact = instability(label, tighter)
    return independent[label] & (compact <= _least(label, compact)[label])


def _least(label: np.ndarray, score: np.ndarray) -> np.ndarray:
    """The smallest score in each cluster, (C + 1,); -inf in the last place, which label -1 reads."""
    least = np.full(label.max() + 2, np.inf)
    np.minimum.at(least, label, score)
    least[-1] = -np.inf
    return least
