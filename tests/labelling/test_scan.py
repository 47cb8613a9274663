import numpy as np
import pytest
from sklearn import metrics
from sklearn.cluster import DBSCAN

from reid_core.labelling.jaccard import Graph, jaccard_graph
from reid_core.labelling.neighbours import nearest
from reid_core.labelling.scan import recommend, scan_eps
from tests.reference.features import people
from tests.reference.jaccard import jaccard_distance


def graph_of(feature: np.ndarray, eps: float) -> Graph:
    return jaccard_graph(feature, nearest(feature, min(30, len(feature))), eps=eps)


def groups_graph(inside: float, across: float) -> Graph:
    """Three groups of eight images, all pairs of which have one of two distances."""
    group = np.repeat(np.arange(3), 8)
    row, col = np.triu_indices(24, 1)
    distance = np.where(group[row] == group[col], inside, across).astype(np.float32)
    return Graph(count=24, eps=0.9, row=row, col=col, distance=distance)


def test_rows_are_those_of_dense_dbscan() -> None:
    feature = people(200, copies=20)
    distance, pid = jaccard_distance(feature), np.arange(200) // 7
    pid[::11] = -1

    def clustered(eps: float) -> np.ndarray:
        label = DBSCAN(eps=eps, min_samples=4, metric="precomputed").fit(distance).labels_
        assert (np.bincount(label[label >= 0]) > 1).all()
        return label

    def single(label: np.ndarray) -> np.ndarray:
        return np.where(label < 0, 1000 + np.arange(200), label)

    for row in scan_eps(graph_of(feature, 0.72), (0.5, 0.6, 0.7), 4, pid):
        label = clustered(row["eps"])
        assert row["clusters"] == label.max() + 1 > 4
        assert row["outliers"] == pytest.approx((label < 0).mean())
        assert row["largest"] == pytest.approx(np.bincount(label[label >= 0]).max() / 200)
        near = [
            metrics.adjusted_rand_score(single(label), single(clustered(row["eps"] + shift)))
            for shift in (-0.02, 0.02)
        ]
        assert row["stability"] == pytest.approx(np.mean(near))
        known = pid >= 0
        expected = metrics.adjusted_rand_score(pid[known], single(label)[known])
        assert row["ari_singletons"] == pytest.approx(expected)


def test_groups_are_recommended_not_their_union() -> None:
    graph = groups_graph(inside=0.5, across=0.8)
    rows = scan_eps(graph, (0.3, 0.4, 0.6, 0.7, 0.85), 4)
    assert [row["clusters"] for row in rows] == [0, 0, 3, 3, 1]
    assert [row["largest"] for row in rows] == pytest.approx([0, 0, 1 / 3, 1 / 3, 1])
    assert rows[recommend(rows)]["eps"] == 0.6


def test_recommended_labels_are_nearly_the_best() -> None:
    """Ten identities in two cameras each: picking the largest radius would merge them all."""
    rng = np.random.default_rng(0)
    pid = np.repeat(np.arange(10), 16)
    feature = (
        rng.standard_normal((10, 64))[pid] + 0.5 * rng.standard_normal((2, 64))[np.arange(160) % 2]
    )
    feature += 0.8 * rng.standard_normal(feature.shape)
    feature = (feature / np.linalg.norm(feature, axis=1, keepdims=True)).astype(np.float32)
    rows = scan_eps(graph_of(feature, 0.97), np.arange(0.3, 0.951, 0.05).tolist(), 4, pid)
    ari = [row["ari_singletons"] for row in rows]
    assert ari[recommend(rows)] > max(ari) - 0.05
    assert ari[-1] < 0.5


def test_stability_sees_a_change_just_above() -> None:
    rows = scan_eps(groups_graph(inside=0.5, across=0.71), (0.6, 0.7), 4)
    assert rows[0]["stability"] == 1
    assert rows[1]["stability"] == pytest.approx(0.5)  # below: the same three; above: one cluster


def test_ends_of_the_range() -> None:
    """The largest radius needs 0.82 in the graph, the smallest has no 0.02 below it."""
    rows = scan_eps(graph_of(people(60), 0.82), (0.01, 0.8), 4)
    assert [row["eps"] for row in rows] == [0.01, 0.8]
    assert "ari_singletons" not in rows[0]


@pytest.mark.parametrize("eps", [(0.5, 0.89), (0.0, 0.5), (-0.1,)])
def test_out_of_range(eps: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        scan_eps(groups_graph(0.5, 0.8), eps, 4)


def test_the_first_of_equal_rows_is_recommended() -> None:
    assert recommend([{"label_free": score} for score in (0.1, 0.7, 0.7, 0.2)]) == 1
