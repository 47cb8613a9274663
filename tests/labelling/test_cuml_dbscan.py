import logging
import sys
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import DBSCAN

from reid_core.errors import UsageError
from reid_core.labelling.cuml_dbscan import (
    VALUE_BYTES,
    WORK_BYTES,
    cluster_block,
    cuml_dbscan,
    free_bytes,
    plan_blocks,
)
from reid_core.labelling.dbscan import dbscan
from reid_core.labelling.jaccard import Graph, jaccard_graph
from reid_core.labelling.neighbours import nearest
from reid_core.labelling.tasks import InProcess
from tests.labelling.test_components import random_graph
from tests.reference.features import people

needs_cuml = pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("cuml") is None, reason="no CUDA device or no cuML"
)


class StandIn:
    """scikit-learn's DBSCAN with cuML's keywords; in batches it moves shared border points."""

    sizes: list[int]

    def __init__(
        self,
        *,
        eps: float,
        min_samples: int,
        metric: str,
        max_mbytes_per_batch: int,
        output_type: str,
    ) -> None:
        assert eps == np.float32(eps)
        assert (metric, output_type) == ("precomputed", "numpy")
        self.model = DBSCAN(eps=eps, min_samples=min_samples, metric=metric)

    def fit(self, matrix: Any) -> "StandIn":
        dense = np.asarray(matrix.cpu())
        assert dense.dtype == np.float32
        StandIn.sizes.append(len(dense))
        self.model.fit(dense)
        self.core_sample_indices_ = self.model.core_sample_indices_
        self.labels_ = self.model.labels_.copy()
        for point in np.setdiff1d(np.flatnonzero(self.labels_ >= 0), self.core_sample_indices_):
            core = self.core_sample_indices_
            self.labels_[point] = self.labels_[core[dense[point, core] <= self.model.eps]].max()
        return self


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    StandIn.sizes = []
    monkeypatch.setitem(sys.modules, "cuml.cluster", SimpleNamespace(DBSCAN=StandIn))
    return StandIn


def budget(images: int) -> int:
    """Room for a matrix of so many images, not for one more."""
    return round((VALUE_BYTES + WORK_BYTES) * images**2) + 1


def assert_labels(graph: Graph, eps: float, min_samples: int, images: int, right: Any) -> None:
    label, is_core = cuml_dbscan(
        graph, eps, min_samples, budget_bytes=budget(images), tasks=InProcess()
    )
    np.testing.assert_array_equal(label, right.labels_)
    np.testing.assert_array_equal(np.flatnonzero(is_core), right.core_sample_indices_)
    assert (label.dtype, is_core.dtype) == (np.int64, np.bool_)


@pytest.mark.parametrize("seed", range(100))
def test_every_path_equals_scikit_learn(seed: int, stand_in: type[StandIn]) -> None:
    count, eps, min_samples = 5 + seed // 2, (0.3, 0.6, 0.65)[seed % 3], 1 + seed % 5
    graph, distance = random_graph(count, seed)
    right = DBSCAN(eps=float(np.float32(eps)), min_samples=min_samples, metric="precomputed")
    right.fit(distance)
    for images in (count, 12, 6, 0):
        stand_in.sizes.clear()
        assert_labels(graph, eps, min_samples, images, right)
        assert max(stand_in.sizes, default=0) <= images
        if images in (0, count):
            assert stand_in.sizes == [count] * (images > 0)


def cliques(*sizes: int) -> Graph:
    """Consecutive images in cliques of these sizes."""
    ends = np.cumsum(sizes)
    group = np.repeat(np.arange(len(sizes)), sizes)
    row, col = np.nonzero(np.triu(group[:, None] == group, 1))
    pairs = row.astype(np.int32), col.astype(np.int32)
    return Graph(int(ends[-1]), 0.9, *pairs, distance=np.full(len(row), 0.2, np.float32))


def test_blocks_are_filled_largest_component_first() -> None:
    """Room for 6: the clique of 7 has no matrix; 5, 4 + 2, 3 + 3; the single image is in none."""
    graph = cliques(3, 2, 7, 1, 4, 5, 3)
    blocks = plan_blocks(graph, 2, budget(6))
    assert [(block.path, block.rows.tolist()) for block in blocks] == [
        ("graph", [5, 6, 7, 8, 9, 10, 11]),
        ("block", [17, 18, 19, 20, 21]),
        ("block", [3, 4, 13, 14, 15, 16]),
        ("block", [0, 1, 2, 22, 23, 24]),
    ]


def test_all_images_in_one_block_where_they_fit() -> None:
    graph = cliques(3, 1, 2)
    (block,) = plan_blocks(graph, 2, budget(6))
    assert (block.path, block.rows.tolist()) == ("whole", [0, 1, 2, 3, 4, 5])
    assert {block.path for block in plan_blocks(graph, 2, budget(5))} == {"block"}


@pytest.mark.parametrize("seed", range(20))
def test_blocks_hold_every_component_once_and_fit(seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(1, 12, size=40)
    graph = cliques(*sizes.tolist())
    blocks = plan_blocks(graph, 3, budget(10))
    rows = np.concatenate([block.rows for block in blocks])
    assert sorted(rows) == np.flatnonzero(np.repeat(sizes, sizes) >= 3).tolist()
    assert all(len(block.rows) == 11 for block in blocks if block.path == "graph")
    packed = [len(block.rows) for block in blocks if block.path == "block"]
    assert max(packed) <= 10
    assert sum(size <= 5 for size in packed) <= 1


def test_no_component_is_large_enough(stand_in: type[StandIn]) -> None:
    graph = cliques(2, 1, 3)
    label, is_core = cuml_dbscan(graph, 0.5, 4, budget_bytes=budget(4), tasks=InProcess())
    assert label.tolist() == [-1] * 6
    assert not is_core.any()
    assert stand_in.sizes == []


def test_the_budget_is_what_a_task_has_free(
    stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (budget(6), 10**12))
    label, _ = cuml_dbscan(cliques(3, 3), 0.5, 2, tasks=InProcess())
    assert label.tolist() == [0, 0, 0, 1, 1, 1]
    assert stand_in.sizes == [3, 3]  # one tenth is kept free: no room for all 6


def test_no_pairs(stand_in: type[StandIn]) -> None:
    graph = cliques(1, 1)
    for images in (2, 1, 0):
        label, is_core = cuml_dbscan(graph, 0.5, 1, budget_bytes=budget(images), tasks=InProcess())
        assert (label.tolist(), is_core.tolist()) == ([0, 1], [True, True])


def test_the_paths_are_logged(stand_in: type[StandIn], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cuml_dbscan(cliques(3, 7, 4, 5), 0.5, 3, budget_bytes=budget(6), tasks=InProcess())
    assert "GB of GPU memory a task" in caplog.messages[0]
    assert caplog.messages[1:] == [
        "cuML DBSCAN: 1 x graph, the largest of 7 images",
        "cuML DBSCAN: 3 x block, the largest of 5 images",
    ]


def test_eps_of_the_graph_is_a_float32_tie(stand_in: type[StandIn]) -> None:
    pair = np.array([0], np.int32), np.array([1], np.int32)
    graph = Graph(2, 0.6, *pair, distance=np.array([0.6], np.float32))  # float32(0.6) > 0.6
    assert cluster_block(graph, 0.6, 2)[0].tolist() == [0, 0]


def test_missing_cuml_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuml.cluster", None)
    with pytest.raises(UsageError, match=r"cuml.*not installed.*\.\[gpu\].*cpu"):
        cluster_block(cliques(3), 0.5, 2)


@pytest.mark.gpu
@needs_cuml
@pytest.mark.parametrize("count", [1000, 10_000, 32_000])
def test_cuml_gives_the_labels_of_the_cpu(count: int, caplog: pytest.LogCaptureFixture) -> None:
    feature = people(count, dim=256, copies=count // 80)
    graph = jaccard_graph(feature, nearest(feature, 30))
    largest = max(len(block.rows) for block in plan_blocks(graph, 4, 0))
    caplog.set_level(logging.INFO)
    for path, room in [
        ("whole", free_bytes()),
        ("block", budget(largest)),
        ("graph", budget(largest - 1)),
    ]:
        caplog.clear()
        found = cuml_dbscan(graph, 0.6, 4, budget_bytes=room, tasks=InProcess())
        assert f"x {path}" in caplog.text
        for values, right in zip(found, dbscan(graph, 0.6, 4), strict=True):
            np.testing.assert_array_equal(values, right)


@pytest.mark.gpu
@needs_cuml
@pytest.mark.parametrize("seed", range(100))
def test_every_path_of_cuml_equals_scikit_learn(seed: int) -> None:
    graph, distance = random_graph(5 + seed, seed)
    right = DBSCAN(eps=float(np.float32(0.6)), min_samples=1 + seed % 5, metric="precomputed")
    right.fit(distance)
    for images in (5 + seed, 20, 8, 0):
        assert_labels(graph, 0.6, 1 + seed % 5, images, right)
