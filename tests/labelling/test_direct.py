import sys

import numpy as np
import pytest
from sklearn.cluster import DBSCAN
from sklearn.metrics import adjusted_rand_score

from reid_core.errors import UsageError
from reid_core.labelling.direct import feature_dbscan, kmeans
from tests.reference.features import people


@pytest.mark.parametrize(("metric", "eps"), [("euclidean", 0.7), ("cosine", 0.245)])
def test_dbscan_equals_that_on_all_distances(metric: str, eps: float) -> None:
    feature = people(200)
    product = feature.astype(np.float64) @ feature.T.astype(np.float64)
    distance = (
        np.maximum(1 - product, 0)
        if metric == "cosine"
        else np.sqrt(np.maximum(2 - 2 * product, 0))
    )
    label, is_core = feature_dbscan(feature, metric, eps, 3)
    expected = DBSCAN(eps=eps, min_samples=3, metric="precomputed").fit(distance)
    np.testing.assert_array_equal(label, expected.labels_)
    assert np.flatnonzero(is_core).tolist() == expected.core_sample_indices_.tolist()
    assert label.max() > 2
    assert (label < 0).any()


def test_the_two_metrics_agree_on_unit_rows() -> None:
    feature = people(200)
    cosine = feature_dbscan(feature, "cosine", 0.3, 4)[0]
    np.testing.assert_array_equal(cosine, feature_dbscan(feature, "euclidean", 0.6**0.5, 4)[0])


def test_kmeans_by_hand() -> None:
    angle = np.array([3.0, 0.1, 0.0, 3.1, 1.5])
    feature = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    assert kmeans(feature, 3, 0)[0].tolist() == [0, 1, 1, 0, 2]
    assert kmeans(feature, 1, 0)[0].tolist() == [0] * 5
    assert kmeans(feature, 5, 0)[0].tolist() == [0, 1, 2, 3, 4]


def test_kmeans_finds_people_and_repeats() -> None:
    rng = np.random.default_rng(0)
    pid = np.repeat(np.arange(6), 20)
    feature = np.eye(6, 32, dtype=np.float32)[pid] + 0.05 * rng.standard_normal((120, 32))
    feature = (feature / np.linalg.norm(feature, axis=1, keepdims=True)).astype(np.float32)
    label, is_core = kmeans(feature, 6, 1)
    assert is_core.all()
    assert adjusted_rand_score(pid, label) > 0.7  # a bad start may merge two and split one
    np.testing.assert_array_equal(label, kmeans(feature, 6, 1)[0])


@pytest.mark.parametrize("clusters", [0, 6])
def test_kmeans_refuses_impossible_numbers(clusters: int) -> None:
    with pytest.raises(ValueError, match=r"1\.\.5"):
        kmeans(people(5), clusters, 0)


def test_k_means_needs_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError, match=r"faiss is not installed.*or cluster by density"):
        kmeans(people(20), 2, 0)
