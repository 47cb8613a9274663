"""Self-paced reliability: by hand, against sets and loops, and from features."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.cluster import DBSCAN

from reid_core.labelling.clusters import cluster, without_singles
from reid_core.labelling.engine import Engine
from reid_core.labelling.reliability import (
    THRESHOLD,
    independence_threshold,
    instability,
    reliable,
    reliable_clusters,
)
from reid_core.labels import Features, Labels
from tests.reference import reliability as reference
from tests.reference.features import people
from tests.reference.jaccard import jaccard_distance

LABEL = np.array([0, 0, 0, 1, 1, -1])
LOOSER = np.array([0, 0, 0, 0, 0, -1])  # the clusters become one
TIGHTER = np.array([0, 0, -1, 1, 1, -1])  # the first one loses an image
RADII = (0.45, 0.55, 0.65)


def rows(seed: int) -> Features:
    return Features(image_id=np.arange(300), feature=people(300, seed=seed))


def labels_of(
    features: Features, radii: tuple[float, float, float], previous: Labels | None = None
) -> Labels:
    return reliable_clusters(features, radii, min_samples=4, k1=30, k2=6, previous=previous)


def with_threshold(value: float) -> Labels:
    nothing = np.zeros((0, 1))
    return Labels(
        image_id=nothing,
        label=nothing,
        is_core=nothing,
        confidence=nothing,
        state={THRESHOLD: value},
    )


def test_scores_by_hand() -> None:
    assert instability(LABEL, LOOSER).tolist() == pytest.approx([0.4, 0.4, 0.4, 0.6, 0.6, 0])
    assert instability(LABEL, TIGHTER).tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 0, 0, 0])
    assert independence_threshold(LABEL, LOOSER) == 0.6


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.6, [1, 1, 0, 1, 1, 0]), (0.5, [1, 1, 0, 0, 0, 0]), (0.0, [0, 0, 0, 0, 0, 0])],
)
def test_choice_by_hand(threshold: float, expected: list[int]) -> None:
    assert reliable(LABEL, TIGHTER, LOOSER, threshold).tolist() == expected


@pytest.mark.parametrize(
    ("clusters", "place"), [(1, 0), (2, 1), (5, 4), (10, 9), (11, 10), (20, 18)]
)
def test_place_of_the_threshold(clusters: int, place: int) -> None:
    """Cluster k is merged with k images more, so that its R is k / (k + 2)."""
    label = np.concatenate(
        [np.repeat(range(clusters), 2)] + [np.full(k, -1) for k in range(clusters)]
    )
    merged = np.repeat(range(clusters), range(clusters))
    looser = np.concatenate([np.repeat(range(clusters), 2), merged])
    assert independence_threshold(label, looser) == pytest.approx(place / (place + 2))


@pytest.mark.parametrize("seed", range(30))
def test_equals_sets_and_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, clusters = rng.integers(1, 40), rng.integers(0, 9)
    label, tighter, looser = (
        without_singles(rng.integers(-1, max(clusters, 1), count), np.ones(count, bool))[0]
        for _ in range(3)
    )
    own, tight, loose = label.tolist(), tighter.tolist(), looser.tolist()
    assert instability(label, looser).tolist() == reference.instability(own, loose)
    threshold = 0.7
    if label.max() >= 0:
        threshold = reference.threshold(own, loose)
        assert independence_threshold(label, looser) == threshold
    kept = reliable(label, tighter, looser, threshold)
    assert kept.tolist() == reference.reliable(own, tight, loose, threshold)


@pytest.mark.parametrize("seed", range(3))
def test_clusters_of_the_dense_reference(seed: int) -> None:
    features = rows(seed)
    distance = jaccard_distance(features.feature)
    found = [
        DBSCAN(eps=eps, min_samples=4, metric="precomputed").fit(distance).labels_ for eps in RADII
    ]
    tighter, label, looser = (labels.tolist() for labels in found)
    threshold = reference.threshold(label, looser)
    kept = np.array(reference.reliable(label, tighter, looser, threshold))
    expected = without_singles(np.where(kept, found[1], -1), kept)[0]
    labels = labels_of(features, RADII)
    np.testing.assert_array_equal(labels.label[:, 0], expected)
    assert labels.state == {THRESHOLD: threshold}
    assert labels.metrics["unreliable"] == pytest.approx(((expected < 0) & (found[1] >= 0)).mean())
    assert 0.05 < labels.metrics["unreliable"] < 0.9
    assert not labels.is_core[expected < 0].any()
    assert (labels.confidence[expected < 0] == 0).all()


def test_blocks_change_nothing() -> None:
    whole, parts = (
        labels_of(rows(0), RADII),
        labels_of(replace(rows(0), engine=Engine(shards=3)), RADII),
    )
    np.testing.assert_array_equal(parts.label, whole.label)
    assert parts.state == whole.state


def test_equal_radii_trust_every_cluster() -> None:
    labels, whole = labels_of(rows(0), (0.55, 0.55, 0.55)), cluster(rows(0), eps=0.55)
    np.testing.assert_array_equal(labels.label, whole.label)
    np.testing.assert_array_equal(labels.is_core, whole.is_core)
    np.testing.assert_array_equal(labels.confidence, whole.confidence)
    assert labels.metrics["unreliable"] == 0
    assert set(labels.metrics) == set(whole.metrics) | {"unreliable"}


def test_score_is_that_of_the_middle_radius() -> None:
    """Scores compare on one graph only: a looser radius that changes no label changes no score."""
    labels = labels_of(rows(0), (0.55, 0.55, 0.7), with_threshold(1.0))
    whole = cluster(rows(0), eps=0.55)
    np.testing.assert_array_equal(labels.label, whole.label)
    assert labels.metrics["label_free"] == whole.metrics["label_free"]


def test_threshold_of_the_round_before_stays() -> None:
    first = labels_of(rows(0), RADII)
    written = Labels.from_table(first.table())
    assert written.state == first.state
    later = labels_of(rows(1), RADII, written)
    assert later.state == first.state != labels_of(rows(1), RADII).state
    strict = labels_of(rows(1), RADII, with_threshold(0.0))
    assert strict.state == {THRESHOLD: 0.0}
    assert strict.metrics["clusters"] < later.metrics["clusters"]


def test_without_a_cluster_the_threshold_waits() -> None:
    features = rows(0)
    arguments = {"radii": RADII, "min_samples": 60, "k1": 30, "k2": 6}
    first = reliable_clusters(features, **arguments, previous=None)
    assert (first.label == -1).all()
    assert (first.state, first.metrics["unreliable"]) == ({}, 0)
    assert labels_of(features, RADII, first).state == labels_of(features, RADII).state
    carried = reliable_clusters(features, **arguments, previous=with_threshold(0.2))
    assert carried.state == {THRESHOLD: 0.2}
