import numpy as np

from reid_core.labelling.clusters import cluster
from reid_core.labelling.given import given_labels
from reid_core.labels import Features
from tests.reference.features import people


def test_by_hand() -> None:
    group = np.array([[9, 4], [-1, 4], [9, 7], [5, 7], [2, 1], [2, -3]])
    labels = given_labels(np.arange(6) * 2, group, None)
    assert labels.label.T.tolist() == [[0, -1, 0, -1, 1, 1], [0, 0, 1, 1, -1, -1]]
    assert labels.is_core.T.tolist() == [
        [True, False, True, False, True, True],
        [True] * 4 + [False] * 2,
    ]
    assert labels.confidence.tolist() == labels.is_core.astype(np.float32).tolist()
    assert labels.metrics == {"clusters": 2, "outliers": 2 / 6, "largest": 2 / 6}


def test_labels_given_again_are_the_same() -> None:
    feature, image_id = people(200), np.arange(200)
    found = cluster(Features(image_id=image_id, feature=feature))
    again = given_labels(image_id, found.label, feature)
    np.testing.assert_array_equal(again.label >= 0, found.label >= 0)
    assert len(np.unique(np.hstack([again.label, found.label]), axis=0)) == len(
        np.unique(found.label)
    )
    np.testing.assert_allclose(again.confidence, found.confidence)
    for name in ("clusters", "outliers", "largest", "label_free"):
        assert again.metrics[name] == found.metrics[name]


def test_nothing_belongs_together() -> None:
    labels = given_labels(np.arange(30), np.full((30, 1), -1), people(30))
    assert (labels.label == -1).all()
    assert labels.metrics["label_free"] == 0
