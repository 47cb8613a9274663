import numpy as np
import pytest
import torch
from sklearn.cluster import DBSCAN

from reid_core.labelling.components import graph_dbscan_torch, smallest_linked
from reid_core.labelling.dbscan import dbscan
from reid_core.labelling.jaccard import Graph

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])]


def random_graph(count: int, seed: int) -> tuple[Graph, np.ndarray]:
    """Groups of about eight, and images with a pair in two of them; the dense distances behind it.

    Some distances are 0, some exactly float32(0.6).
    """
    rng = np.random.default_rng(seed)
    distance = rng.choice([0, 0.3, 0.6, 0.7], size=(count, count)).astype(np.float32)
    group = rng.integers(max(1, count // 8), size=count)
    between = rng.random(count) < 0.1
    apart = (group[:, None] != group) | between[:, None] | between
    distance[apart | (rng.random((count, count)) < 0.3 + 0.1 * (seed % 5))] = 1
    ends = np.repeat(np.flatnonzero(between), 2)
    ends = np.sort([ends, rng.integers(count, size=len(ends))], axis=0)
    distance[ends[0], ends[1]] = 0.3
    distance = np.triu(distance, 1)
    distance += distance.T
    row, col = np.nonzero(np.triu(distance < 0.9, 1))
    pairs = row.astype(np.int32), col.astype(np.int32)
    return Graph(count, 0.9, *pairs, distance=distance[row, col]), distance


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(100))
def test_equals_scikit_learn_on_random_graphs(seed: int, device: str) -> None:
    graph, distance = random_graph(5 + seed, seed)
    eps, min_samples = (0.3, 0.6, 0.65)[seed % 3], 1 + seed % 4
    label, is_core = graph_dbscan_torch(graph, eps, min_samples, device)
    model = DBSCAN(eps=float(np.float32(eps)), min_samples=min_samples, metric="precomputed")
    model.fit(distance)
    np.testing.assert_array_equal(label, model.labels_)
    np.testing.assert_array_equal(np.flatnonzero(is_core), model.core_sample_indices_)
    assert (label.dtype, is_core.dtype) == (np.int64, np.bool_)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", ["rising", "falling", "ends", "shuffled"])
def test_long_chain_is_one_component(order: str, device: str) -> None:
    count = 3001
    rising = np.arange(count)
    chain = {
        "rising": rising,
        "falling": rising[::-1],
        "ends": np.stack([rising, rising[::-1]], axis=1).ravel()[:count],
        "shuffled": np.random.default_rng(0).permutation(count),
    }[order]
    edge = torch.from_numpy(np.stack([chain[:-1], chain[1:]])).to(device)
    assert smallest_linked(edge, count + 1).tolist() == [0] * count + [count]


@pytest.mark.parametrize("device", DEVICES)
def test_border_point_takes_its_smallest_cluster(device: str) -> None:
    """Rows 4, 5, 6 and 0, 1, 2 are dense; 3 is near a core of both; clusters follow core rows."""
    edges = [(0, 1), (0, 2), (1, 2), (2, 3), (3, 4), (4, 5), (4, 6), (5, 6)]
    row, col = np.array(edges, np.int32).T
    graph = Graph(count=7, eps=0.9, row=row, col=col, distance=np.full(8, 0.2, np.float32))
    label, is_core = graph_dbscan_torch(graph, 0.5, 4, device)
    assert is_core.tolist() == [False, False, True, False, True, False, False]
    assert label.tolist() == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("device", DEVICES)
def test_no_edges(device: str) -> None:
    none = np.empty(0, np.int32)
    graph = Graph(count=3, eps=0.9, row=none, col=none, distance=np.empty(0, np.float32))
    assert graph_dbscan_torch(graph, 0.5, 2, device)[0].tolist() == [-1, -1, -1]
    assert graph_dbscan_torch(graph, 0.5, 1, device)[0].tolist() == [0, 1, 2]


@pytest.mark.gpu
@needs_cuda
def test_cuda_at_a_million_images() -> None:
    rng = np.random.default_rng(0)
    row, col = np.sort(rng.integers(1_000_000, size=(2, 3_000_000)).astype(np.int32), axis=0)
    pairs = np.unique(np.stack([row, col])[:, row < col], axis=1)
    distance = rng.random(pairs.shape[1], dtype=np.float32)
    graph = Graph(count=1_000_000, eps=0.99, row=pairs[0], col=pairs[1], distance=distance)
    found, expected = graph_dbscan_torch(graph, 0.6, 4, "cuda"), dbscan(graph, 0.6, 4)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
