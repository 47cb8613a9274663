import numpy as np
import pytest

from reid_core.labelling.jaccard import Graph, jaccard_graph
from reid_core.labelling.neighbours import nearest
from tests.reference import jaccard as reference
from tests.reference.features import people


def graph_of(feature: np.ndarray, *, k1: int, k2: int, eps: float) -> Graph:
    return jaccard_graph(feature, nearest(feature, min(k1, len(feature))), k2=k2, eps=eps)


@pytest.mark.parametrize(
    ("count", "k1", "k2"),
    [(400, 30, 6), (300, 20, 6), (300, 7, 1), (200, 5, 3), (200, 1, 1), (20, 30, 6), (2, 30, 2)],
)
@pytest.mark.parametrize("eps", [0.55, 0.7])
def test_equals_the_dense_distance(count: int, k1: int, k2: int, eps: float) -> None:
    feature = people(count, copies=count // 8)
    graph = graph_of(feature, k1=k1, k2=k2, eps=eps)
    dense = reference.jaccard_distance(feature, k1, k2)
    row, col = np.nonzero(np.triu(dense <= np.float32(eps), 1))
    order = np.lexsort((graph.col, graph.row))
    np.testing.assert_array_equal(graph.row[order], row)
    np.testing.assert_array_equal(graph.col[order], col)
    np.testing.assert_allclose(graph.distance[order], dense[row, col], atol=2e-6)


def test_the_dense_distance_is_a_distance() -> None:
    dense = reference.jaccard_distance(people(200))
    np.testing.assert_allclose(dense, dense.T, atol=1e-6)
    np.testing.assert_allclose(np.diag(dense), 0, atol=1e-6)
    assert dense.min() >= 0
    assert dense.max() <= 1


def test_invariants() -> None:
    graph = graph_of(people(500, copies=40), k1=30, k2=6, eps=0.7)
    assert (graph.row < graph.col).all()
    assert (np.diff(graph.row) >= 0).all()
    assert len(set(zip(graph.row.tolist(), graph.col.tolist(), strict=True))) == len(graph.row)
    assert graph.distance.dtype == np.float32
    assert graph.distance.min() >= 0
    assert graph.distance.max() <= np.float32(0.7)


def test_order_of_images_does_not_matter() -> None:
    feature, order = people(300), np.random.default_rng(0).permutation(300)
    graph, mixed = (graph_of(f, k1=20, k2=6, eps=0.6) for f in (feature, feature[order]))
    dense, mixed_dense = np.ones((2, 300, 300))
    dense[graph.row, graph.col] = dense[graph.col, graph.row] = graph.distance
    mixed_dense[mixed.row, mixed.col] = mixed_dense[mixed.col, mixed.row] = mixed.distance
    np.testing.assert_allclose(dense[order][:, order], mixed_dense, atol=2e-6)


def test_copies_are_pairs_at_distance_0() -> None:
    pair = np.repeat(np.eye(2, dtype=np.float32), 2, axis=0)
    graph = graph_of(pair, k1=2, k2=1, eps=0.5)
    assert list(zip(graph.row, graph.col, graph.distance, strict=True)) == [(0, 1, 0), (2, 3, 0)]


def test_three_points_by_hand() -> None:
    """Lists of two: 0 and 1 have each other, 2 has 1, which does not have 2."""
    angle = np.array([0.0, 0.2, 0.6])
    feature = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    graph = graph_of(feature, k1=2, k2=1, eps=0.9)
    low = np.exp(2 * np.cos(0.2) - 2)
    shared = 2 * low / (1 + low)  # V(0) = (1, low) / (1 + low), V(1) = (low, 1) / (1 + low)
    assert (graph.row.tolist(), graph.col.tolist()) == ([0], [1])
    assert graph.distance[0] == pytest.approx(1 - shared / (2 - shared), abs=1e-6)


@pytest.mark.parametrize(("k2", "eps"), [(0, 0.5), (11, 0.5), (6, 0.0), (6, 1.0), (6, 1 - 1e-9)])
def test_out_of_range(k2: int, eps: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        graph_of(people(50), k1=10, k2=k2, eps=eps)
