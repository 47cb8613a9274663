import numpy as np
import pytest
from sklearn.cluster import DBSCAN

from reid_core.labelling.dbscan import dbscan
from reid_core.labelling.jaccard import Graph


def graph_of(count: int, edges: dict[tuple[int, int], float], eps: float = 0.9) -> Graph:
    row, col = np.array(list(edges), np.int32).reshape(-1, 2).T
    return Graph(
        count=count, eps=eps, row=row, col=col, distance=np.array([*edges.values()], np.float32)
    )


def random_graph(count: int, degree: float, seed: int) -> tuple[Graph, np.ndarray]:
    """A graph and the dense distances behind it; some are 0, some exactly float32(0.6)."""
    rng = np.random.default_rng(seed)
    distance = rng.choice([0, 0.3, 0.6, 0.7], size=(count, count)).astype(np.float32)
    distance[rng.random((count, count)) > degree / count] = 1
    distance = np.triu(distance, 1)
    distance += distance.T
    row, col = np.nonzero(np.triu(distance < 0.9, 1))
    graph = Graph(count=count, eps=0.9, row=row, col=col, distance=distance[row, col])
    return graph, distance


@pytest.mark.parametrize("seed", range(60))
def test_equals_scikit_learn_on_random_graphs(seed: int) -> None:
    count, degree, min_samples = 5 + 3 * seed, 2 + seed % 5, 1 + seed % 6
    graph, distance = random_graph(count, degree, seed)
    for eps in (0.3, 0.6, 0.65):
        label, is_core = dbscan(graph, eps, min_samples)
        expected = DBSCAN(eps=np.float32(eps), min_samples=min_samples, metric="precomputed").fit(
            distance
        )
        np.testing.assert_array_equal(label, expected.labels_)
        np.testing.assert_array_equal(np.flatnonzero(is_core), expected.core_sample_indices_)


def test_border_point_takes_its_smallest_cluster() -> None:
    """Images 4, 5, 6 and 0, 1, 2 are dense; 3 is near a core of both; clusters follow core rows."""
    triangles = {(4, 5), (4, 6), (5, 6), (0, 1), (0, 2), (1, 2)}
    graph = graph_of(7, dict.fromkeys([*triangles, (2, 3), (3, 4)], 0.2))
    label, is_core = dbscan(graph, 0.5, 4)
    assert is_core.tolist() == [False, False, True, False, True, False, False]
    assert label.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_clusters_are_numbered_by_core_rows_not_by_border_rows() -> None:
    """Row 0 is a border point of the cluster of cores 2, 3; the cluster of core 1 comes first."""
    edges = [(0, 3), (2, 3), (2, 6), (3, 6), (1, 4), (1, 5), (1, 7)]
    label, is_core = dbscan(graph_of(8, dict.fromkeys(edges, 0.1)), 0.5, 4)
    assert np.flatnonzero(is_core).tolist() == [1, 3]
    assert label.tolist() == [1, 0, 1, 1, 0, 0, 1, 0]


def test_min_samples_counts_the_image_itself() -> None:
    graph = graph_of(3, {(0, 1): 0.0})
    assert dbscan(graph, 0.5, 2)[0].tolist() == [0, 0, -1]
    assert dbscan(graph, 0.5, 1)[0].tolist() == [0, 0, 1]
    assert dbscan(graph, 0.5, 3)[0].tolist() == [-1, -1, -1]


def test_eps_is_compared_as_float32() -> None:
    graph = graph_of(2, {(0, 1): 0.6})  # float32(0.6) > 0.6
    assert dbscan(graph, 0.6, 2)[0].tolist() == [0, 0]


def test_no_edges() -> None:
    label, is_core = dbscan(graph_of(4, {}), 0.5, 2)
    assert label.tolist() == [-1] * 4
    assert not is_core.any()


@pytest.mark.parametrize(("eps", "min_samples"), [(0.0, 4), (0.95, 4), (0.5, 0)])
def test_out_of_range(eps: float, min_samples: int) -> None:
    with pytest.raises(ValueError, match="must"):
        dbscan(graph_of(2, {(0, 1): 0.6}), eps, min_samples)
