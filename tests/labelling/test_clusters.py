import numpy as np
import pytest
from sklearn.cluster import DBSCAN

from reid_core.labelling.blocks import Blocks
from reid_core.labelling.clusters import cluster, confidence, without_singles
from reid_core.labelling.tasks import InProcess
from reid_core.labels import Features, Labels
from tests.reference.features import normalised, people
from tests.reference.jaccard import jaccard_distance


def features(feature: np.ndarray) -> Features:
    return Features(image_id=np.arange(len(feature)) * 3 + 5, feature=feature)


def assert_dense_labels(feature: np.ndarray, *, min_samples: int = 4) -> set[int]:
    """Compare with scikit-learn on dense distances; the numbers of clusters found."""
    distance = jaccard_distance(feature)
    found = set()
    for eps in (0.55, 0.6, 0.7):
        labels = cluster(features(feature), eps=eps, min_samples=min_samples)
        expected = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit(distance)
        assert labels.metrics["clusters"] == expected.labels_.max() + 1
        np.testing.assert_array_equal(labels.label[:, 0], expected.labels_)
        np.testing.assert_array_equal(
            np.flatnonzero(labels.is_core[:, 0]), expected.core_sample_indices_
        )
        found.add(int(labels.metrics["clusters"]))
    return found


@pytest.mark.parametrize(("count", "seed"), [(300, 0), (300, 1), (400, 2), (700, 3)])
def test_labels_of_the_dense_reference(count: int, seed: int) -> None:
    assert min(assert_dense_labels(people(count, seed=seed, copies=count // 20))) > 5


@pytest.mark.slow
@pytest.mark.parametrize("count", [4000, 8000])
def test_labels_of_the_dense_reference_at_size(count: int) -> None:
    assert min(assert_dense_labels(people(count, dim=256, noise=1.0, copies=100))) > 50


def test_all_outliers() -> None:
    feature = normalised(np.random.default_rng(0).standard_normal((300, 512)))
    assert assert_dense_labels(feature, min_samples=20) == {0}
    labels = cluster(features(feature), min_samples=20)
    assert labels.metrics["outliers"] == 1
    assert labels.metrics["largest"] == 0
    assert labels.metrics["label_free"] == 0
    assert (labels.confidence == 0).all()


def test_one_cluster() -> None:
    feature = normalised(1 + 0.1 * np.random.default_rng(0).standard_normal((24, 32)))
    assert assert_dense_labels(feature) == {1}
    labels = cluster(features(feature))
    assert labels.metrics["largest"] == 1
    assert labels.confidence.min() > 0.95


@pytest.mark.parametrize("count", [1, 2, 5, 29])
def test_fewer_images_than_neighbours(count: int) -> None:
    assert_dense_labels(people(count, noise=0.05))


def test_all_copies() -> None:
    feature = np.repeat(people(1), 100, axis=0)
    assert assert_dense_labels(feature) == {1}


def test_result_is_a_table_of_one_level() -> None:
    rows = features(people(200))
    labels = cluster(rows)
    again = Labels.from_table(labels.table())
    for name in ("image_id", "label", "is_core", "confidence"):
        np.testing.assert_array_equal(getattr(again, name), getattr(labels, name))
    assert labels.label.shape == labels.is_core.shape == labels.confidence.shape == (200, 1)
    assert labels.confidence.dtype == np.float32
    shares = {"clusters", "outliers", "largest", "label_free"}
    assert set(labels.metrics) == shares | {"seconds_knn", "seconds_jaccard", "seconds_dbscan"}
    assert again.metrics == {name: labels.metrics[name] for name in shares}


def test_two_runs_are_equal() -> None:
    first, second = (cluster(features(people(400))) for _ in range(2))
    np.testing.assert_array_equal(first.label, second.label)
    np.testing.assert_array_equal(first.confidence, second.confidence)
    assert first.metrics["label_free"] == second.metrics["label_free"]


def test_clusters_of_one_become_outliers() -> None:
    label, is_core = without_singles(
        np.array([2, 0, -1, 1, 2, 3, 3]), np.array([True, True, False, True, True, False, True])
    )
    assert label.tolist() == [0, -1, -1, -1, 0, 1, 1]
    assert is_core.tolist() == [True, False, False, False, True, False, True]
    alone, _ = without_singles(np.array([-1, 0]), np.array([False, True]))
    assert alone.tolist() == [-1, -1]


def test_confidence_by_hand() -> None:
    """The mean of (1, 0) and (0, 1) lies at 45 degrees from both."""
    feature = np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0]], np.float32)
    sure = confidence(Blocks([feature], [0, 4]), np.array([0, 0, 1, -1]), InProcess())
    np.testing.assert_allclose(sure, [(1 + 0.5**0.5) / 2, (1 + 0.5**0.5) / 2, 1, 0], rtol=1e-6)
    both_ways = Blocks([np.array([[1, 0], [-1, 0]], np.float32)], [0, 2])
    opposite = confidence(both_ways, np.array([0, 0]), InProcess())
    np.testing.assert_array_equal(opposite, [0.5, 0.5])


@pytest.mark.parametrize("wrong", [{"k1": 0}, {"k2": 31}, {"eps": 1.0}, {"min_samples": 0}])
def test_arguments_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"k2|eps|min_samples"):
        cluster(features(people(40)), **wrong)  # type: ignore[arg-type]


def test_rows_that_cannot_be_clustered() -> None:
    feature = people(40)
    feature[3] = np.nan
    with pytest.raises(ValueError, match="row 3"):
        cluster(features(feature))
    with pytest.raises(ValueError, match="no image"):
        cluster(features(feature[:0]))
    with pytest.raises(ValueError, match="must increase"):
        cluster(Features(image_id=np.array([3, 1, 2]), feature=people(3)))
