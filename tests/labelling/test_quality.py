import math

import numpy as np
import pytest
from sklearn import metrics

from reid_core.labelling.dbscan import dbscan
from reid_core.labelling.jaccard import Graph, jaccard_graph
from reid_core.labelling.neighbours import nearest
from reid_core.labelling.quality import clustering_quality, label_free_score
from tests.reference import label_free as reference
from tests.reference.features import people
from tests.reference.jaccard import jaccard_distance


@pytest.mark.parametrize("eps", [0.55, 0.7])
def test_label_free_score_equals_the_loops(eps: float) -> None:
    feature = people(200, copies=20)
    graph = jaccard_graph(feature, nearest(feature, 30), eps=eps)
    label, _ = dbscan(graph, eps, 4)
    mixed = np.where(np.random.default_rng(0).random(200) < 0.2, (label + 1) % 9 - 1, label)
    for labels in (label, mixed, np.full(200, -1)):
        expected = reference.label_free_score(jaccard_distance(feature), eps, labels)
        assert label_free_score(graph, labels) == pytest.approx(expected, abs=1e-6)


def test_label_free_score_by_hand() -> None:
    """A path 0 - 1 - 2 - 3 with similarities 0.75, 0.5, 0.5; image 3 is an outlier, 4 is alone."""
    graph = Graph(
        count=5,
        eps=0.6,
        row=np.array([0, 1, 2]),
        col=np.array([1, 2, 3]),
        distance=np.array([0.25, 0.5, 0.5], np.float32),
    )
    label = np.array([0, 0, 1, -1, 1])
    score = [1, (0.75 - 0.5) / 0.75, -1, 0, 0]
    assert label_free_score(graph, label) == pytest.approx(np.mean(score))


def test_each_outlier_neighbour_is_a_label_of_its_own() -> None:
    """Image 0 has one own neighbour (0.5) and outliers at 0.9 and 0.4: b is 0.9, not their mean."""
    graph = Graph(
        count=4,
        eps=0.7,
        row=np.array([0, 0, 0]),
        col=np.array([1, 2, 3]),
        distance=np.array([0.5, 0.1, 0.6], np.float32),
    )
    score = label_free_score(graph, np.array([0, 0, -1, -1]))
    assert score == pytest.approx(((0.5 - 0.9) / 0.9 + 1) / 4)


def test_perfect_labels_score_1() -> None:
    pid = np.array([7, 7, 3, 3, 5, 5])
    quality = clustering_quality(np.array([0, 0, 1, 1, 2, 2]), pid)
    assert quality == pytest.approx(dict.fromkeys(quality, 1.0))
    assert len(quality) == 10


def test_quality_by_hand() -> None:
    """Clusters {a, a, b} and {b, b}, and an outlier a: purity 4 of 5, then 5 of 6."""
    label, pid = np.array([0, 0, 0, 1, 1, -1]), np.array([1, 1, 2, 2, 2, 1])
    quality = clustering_quality(label, pid)
    assert quality["purity_clustered"] == pytest.approx(4 / 5)
    assert quality["purity_singletons"] == pytest.approx(5 / 6)
    assert quality["fmi_clustered"] == pytest.approx(2 / math.sqrt(4 * 4))
    single = np.array([0, 0, 0, 1, 1, 2])
    assert quality["ari_singletons"] == pytest.approx(metrics.adjusted_rand_score(pid, single))


def test_nothing_clustered() -> None:
    quality = clustering_quality(np.full(4, -1), np.array([1, 1, 2, 2]))
    assert math.isnan(quality["ari_clustered"])
    assert quality["ari_singletons"] == 0
