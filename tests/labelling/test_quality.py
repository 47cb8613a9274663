import math

import numpy as np
import pytest
from sklearn import metrics

from reid_core.labelling.dbscan import dbscan
from reid_core.labelling.jaccard import Graph, jaccard_graph
from reid_core.labelling.neighbours import nearest
from reid_core.labelling.quality import clustering_quality, label_free_score, silhouette
from tests.reference import label_free as reference
from tests.reference.features import people
from tests.reference.jaccard import jaccard_distance


def labelled(eps: float) -> tuple[np.ndarray, Graph, list[np.ndarray]]:
    """Features, their graph within ``eps``, and labels of it: found, disturbed, outliers only."""
    feature = people(200, copies=20)
    graph = jaccard_graph(feature, nearest(feature, 30), eps=eps)
    label, _ = dbscan(graph, eps, 4)
    mixed = np.where(np.random.default_rng(0).random(200) < 0.2, (label + 1) % 9 - 1, label)
    return feature, graph, [label, mixed, np.full(200, -1)]


def path_graph() -> Graph:
    """A path 0 - 1 - 2 - 3 with similarities 0.75, 0.5, 0.5; image 4 is alone."""
    return Graph(
        count=5,
        eps=0.6,
        row=np.array([0, 1, 2]),
        col=np.array([1, 2, 3]),
        distance=np.array([0.25, 0.5, 0.5], np.float32),
    )


@pytest.mark.parametrize("eps", [0.55, 0.7])
def test_label_free_score_equals_the_loops(eps: float) -> None:
    feature, graph, labels = labelled(eps)
    for label in labels:
        expected = reference.label_free_score(jaccard_distance(feature), eps, label)
        assert label_free_score(graph, label) == pytest.approx(expected, abs=1e-6)


def test_label_free_score_by_hand() -> None:
    """Image 0: cohesion 0.75, share 1; image 1: 0.75 and 0.6; 2 has no neighbour in its cluster."""
    score = [2 * 0.75 / 1.75, 2 * 0.75 * 0.6 / 1.35, 0, 0, 0]
    assert label_free_score(path_graph(), np.array([0, 0, 1, -1, 1])) == pytest.approx(
        np.mean(score)
    )


def test_label_free_score_is_best_for_the_groups_that_are_there() -> None:
    """Three groups of eight, weakly tied: neither all in one cluster nor halves of them win."""
    group = np.repeat(np.arange(3), 8)
    distance = np.where(group[:, None] == group, 0.3, 0.9).astype(np.float32)
    row, col = np.triu_indices(24, 1)
    graph = Graph(count=24, eps=0.95, row=row, col=col, distance=distance[row, col])
    right, one, halves = (
        label_free_score(graph, label) for label in (group, 0 * group, np.arange(24) // 4)
    )
    assert right > max(one, halves)


@pytest.mark.parametrize("eps", [0.55, 0.7])
def test_silhouette_is_that_of_scikit_learn(eps: float) -> None:
    feature, graph, labels = labelled(eps)
    distance = jaccard_distance(feature)
    distance = np.where(distance <= np.float32(eps), distance, 1)
    np.fill_diagonal(distance, 0)
    for label in labels[:2]:
        kept = label >= 0
        samples = metrics.silhouette_samples(
            distance[kept][:, kept], label[kept], metric="precomputed"
        )
        assert silhouette(graph, label) == pytest.approx(samples.sum() / 200, abs=1e-6)


def test_silhouette_by_hand() -> None:
    """Clusters {0, 1} and {2, 3}: 1 is at 0.25 from its own, at (0.5 + 1) / 2 from the other."""
    score = [0.75, (0.75 - 0.25) / 0.75, (0.75 - 0.5) / 0.75, 0.5, 0]
    assert silhouette(path_graph(), np.array([0, 0, 1, 1, -1])) == pytest.approx(np.mean(score))


@pytest.mark.parametrize("label", [[-1] * 5, [0] * 5, [0, 0, 0, -1, -1]])
def test_silhouette_of_fewer_than_two_clusters_is_0(label: list[int]) -> None:
    assert silhouette(path_graph(), np.array(label)) == 0


def test_perfect_labels_score_1() -> None:
    pid = np.array([7, 7, 3, 3, 5, 5])
    quality = clustering_quality(np.array([0, 0, 1, 1, 2, 2]), pid)
    assert quality == pytest.approx(dict.fromkeys(quality, 1.0))
    assert len(quality) == 12


def test_quality_by_hand() -> None:
    """Clusters {a, a, b} and {b, b}, and an outlier a: purity 4 of 5, then 5 of 6."""
    label, pid = np.array([0, 0, 0, 1, 1, -1]), np.array([1, 1, 2, 2, 2, 1])
    quality = clustering_quality(label, pid)
    assert quality["purity_clustered"] == pytest.approx(4 / 5)
    assert quality["purity_singletons"] == pytest.approx(5 / 6)
    assert quality["fmi_clustered"] == pytest.approx(2 / math.sqrt(4 * 4))
    assert quality["pairwise_f_clustered"] == pytest.approx(2 / 4)  # 2 of 4 pairs, both ways
    assert quality["pairwise_f_singletons"] == pytest.approx(2 * 2 / (4 + 6))
    single = np.array([0, 0, 0, 1, 1, 2])
    assert quality["ari_singletons"] == pytest.approx(metrics.adjusted_rand_score(pid, single))


def test_nothing_clustered() -> None:
    quality = clustering_quality(np.full(4, -1), np.array([1, 1, 2, 2]))
    assert math.isnan(quality["ari_clustered"])
    assert quality["ari_singletons"] == 0
