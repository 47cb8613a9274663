import numpy as np
import pytest
import torch

from reid_core.labelling.dbscan import dbscan
from reid_core.labelling.jaccard import Graph, jaccard_graph
from reid_core.labelling.jaccard_torch import jaccard_graph_torch
from reid_core.labelling.neighbours import Neighbours, nearest
from tests.reference import jaccard as reference
from tests.reference.features import normalised, people

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])]
EPS = (0.55, 0.6, 0.7)


def assert_same_graph(graph: Graph, expected: Graph) -> None:
    order = np.lexsort((expected.col, expected.row))
    np.testing.assert_array_equal(graph.row, expected.row[order])
    np.testing.assert_array_equal(graph.col, expected.col[order])
    np.testing.assert_allclose(graph.distance, expected.distance[order], atol=1e-6)
    assert (graph.row.dtype, graph.col.dtype) == (np.int32, np.int32)
    assert graph.distance.dtype == np.float32
    assert (graph.count, graph.eps) == (expected.count, expected.eps)


def assert_equal_at_every_eps(feature: np.ndarray, *, k1: int, k2: int, device: str) -> list[int]:
    """Compare with both references, in chunks of a few rows; the pairs found."""
    neighbours = nearest(feature, min(k1, len(feature)), device="cpu")
    dense = reference.jaccard_distance(feature, k1, k2)
    found = []
    for eps in EPS:
        options = {"k2": k2, "eps": eps, "device": device, "block_values": 20_000}
        graph = jaccard_graph_torch(feature, neighbours, **options)
        assert_same_graph(graph, jaccard_graph(feature, neighbours, k2=k2, eps=eps))
        row, col = np.nonzero(np.triu(dense <= np.float32(eps), 1))
        np.testing.assert_array_equal(graph.row, row)
        np.testing.assert_array_equal(graph.col, col)
        np.testing.assert_allclose(graph.distance, dense[row, col], atol=2e-6)
        found.append(len(row))
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("count", "k1", "k2"),
    [(300, 30, 6), (300, 7, 1), (200, 5, 3), (200, 1, 1), (20, 30, 6), (2, 30, 2), (1, 30, 1)],
)
def test_equals_the_cpu_engine_and_the_dense_distance(
    device: str, count: int, k1: int, k2: int
) -> None:
    assert_equal_at_every_eps(people(count, copies=count // 8), k1=k1, k2=k2, device=device)


@pytest.mark.parametrize("device", DEVICES)
def test_more_copies_than_neighbours_leave_rows_without_weights(device: str) -> None:
    """The list of a late copy holds the first copies only, none of which has it."""
    feature = people(60)
    feature[10:30] = feature[10]
    assert min(assert_equal_at_every_eps(feature, k1=5, k2=2, device=device)) > 0


@pytest.mark.parametrize("device", DEVICES)
def test_no_pairs(device: str) -> None:
    feature = normalised(np.random.default_rng(0).standard_normal((100, 512)))
    assert assert_equal_at_every_eps(feature, k1=5, k2=1, device=device) == [0, 0, 0]


@pytest.mark.parametrize("device", DEVICES)
def test_one_cluster(device: str) -> None:
    feature = normalised(1 + 0.1 * np.random.default_rng(0).standard_normal((24, 32)))
    pairs = 24 * 23 // 2
    assert assert_equal_at_every_eps(feature, k1=30, k2=6, device=device) == [pairs] * 3


@pytest.mark.parametrize("device", DEVICES)
def test_chunks_and_runs_give_the_same_bits(device: str) -> None:
    feature = people(300, copies=30)
    feature[10:60] = feature[10]  # chunks without a pair, rows without weights
    neighbours = nearest(feature, 20, device="cpu")
    once, again, row_by_row = (
        jaccard_graph_torch(feature, neighbours, device=device, block_values=values)
        for values in (2**20, 2**20, 1)
    )
    for other in (again, row_by_row):
        for name in ("row", "col", "distance"):
            np.testing.assert_array_equal(getattr(once, name), getattr(other, name))


def test_by_hand() -> None:
    """Lists of two: 0 and 1 have each other, 2 has 1, which does not have 2."""
    angle = np.array([0.0, 0.2, 0.6])
    feature = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    neighbours = Neighbours(
        np.array([[0, 1], [1, 0], [2, 1]], np.int32),
        np.array([[1, np.cos(0.2)], [1, np.cos(0.2)], [1, np.cos(0.4)]], np.float32),
    )
    graph = jaccard_graph_torch(feature, neighbours, k2=1, eps=0.9, device="cpu")
    low = np.exp(2 * np.cos(0.2) - 2)
    shared = 2 * low / (1 + low)  # V(0) = (1, low) / (1 + low), V(1) = (low, 1) / (1 + low)
    assert (graph.row.tolist(), graph.col.tolist()) == ([0], [1])
    assert graph.distance[0] == pytest.approx(1 - shared / (2 - shared), abs=1e-6)


@pytest.mark.parametrize(("k2", "eps"), [(0, 0.5), (11, 0.5), (6, 0.0), (6, 1.0)])
def test_out_of_range(k2: int, eps: float) -> None:
    feature = people(50)
    with pytest.raises(ValueError, match="must lie in"):
        jaccard_graph_torch(feature, nearest(feature, 10), k2=k2, eps=eps, device="cpu")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("count", [1000, 10_000, 32_000])
def test_cuda_at_size(count: int) -> None:
    """The k-NN and the graph of a GPU give the labels of the CPU."""
    feature = people(count, dim=256, copies=count // 80)
    neighbours = nearest(feature, 30, device="cpu")
    on_gpu = nearest(feature, 30, device="cuda")
    np.testing.assert_array_equal(on_gpu.row, neighbours.row)
    np.testing.assert_array_equal(on_gpu.similarity, neighbours.similarity)
    graph, expected = (
        jaccard_graph_torch(feature, neighbours, device="cuda"),
        jaccard_graph(feature, neighbours),
    )
    assert_same_graph(graph, expected)
    for found, right in zip(dbscan(graph, 0.6, 4), dbscan(expected, 0.6, 4), strict=True):
        np.testing.assert_array_equal(found, right)
