"""DBSCAN on a graph by cuML, which takes dense matrices only.

No cluster crosses a connected component of the graph. So the matrix is, whichever fits first,

- ``whole``: of all N images;
- ``block``: of as many components as fit, each block a task of its own;
- ``graph``: none, for a component that is too large for one; components.py takes it.

Tested with scikit-learn's DBSCAN in place of cuML's, not run on a GPU.
"""

import logging
from collections import Counter
from math import isqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from reid_core.errors import UsageError
from reid_core.labelling.components import edges, graph_dbscan_torch, number_clusters
from reid_core.labelling.dbscan import check_density
from reid_core.labelling.jaccard import Graph
from reid_core.labelling.screens import as_tensor
from reid_core.labelling.tasks import Tasks

VALUE_BYTES = 4  # float32
WORK_BYTES = 5.2  # of cuML a value: a bool and an int32 in one batch, and some room
FREE_SHARE = 0.45  # of the free GPU memory: a run puts two label tasks on a GPU that has no worker
logger = logging.getLogger(__name__)


class Block(NamedTuple):
    """Images that are clustered together."""

    path: str  # ``whole``, ``block`` or ``graph``
    rows: np.ndarray  # increasing


def cuml_dbscan(
    graph: Graph, eps: float, min_samples: int, *, budget_bytes: int | None = None, tasks: Tasks
) -> tuple[np.ndarray, np.ndarray]:
    """``dbscan.dbscan`` by cuML: same labels. Logs the paths taken.

    Args:
        graph: all pairs within ``graph.eps``.
        eps: radius, at most ``graph.eps``; compared as float32.
        min_samples: images within ``eps`` of a core point, itself included.
        budget_bytes: GPU memory of one task; what ``free_bytes`` says there unless given.
        tasks: where the blocks run, each on a GPU.

    Returns:
        label: (N,) int64, -1 for outliers.
        is_core: (N,) bool.

    Raises:
        UsageError: cuML is not installed.
        ValueError: as ``dbscan.dbscan``.
    """
    check_density(graph, eps, min_samples)
    if budget_bytes is None:
        budget_bytes = int(tasks.get([tasks.submit(free_bytes, gpu=True)])[0])
    graph = graph.within(eps)
    logger.info("cuML DBSCAN: %.1f GB of GPU memory a task", budget_bytes / 1e9)
    blocks = plan_blocks(graph, min_samples, budget_bytes)
    for path, number in Counter(block.path for block in blocks).items():
        largest = max(len(block.rows) for block in blocks if block.path == path)
        logger.info("cuML DBSCAN: %d x %s, the largest of %d images", number, path, largest)
    run = {"whole": cluster_block, "block": cluster_block, "graph": graph_dbscan_torch}
    labelled = [
        tasks.submit(run[block.path], part, eps, min_samples, gpu=True)
        for block, part in zip(blocks, _parts(graph, blocks), strict=True)
    ]
    tasks.wait(labelled, "DBSCAN blocks")
    root, is_core = np.zeros(graph.count, np.int64), np.zeros(graph.count, np.bool_)
    for block, (label, core) in zip(blocks, tasks.get(labelled), strict=True):
        rows = block.rows[core]
        _, first, which = np.unique(label[core], return_index=True, return_inverse=True)
        root[rows], is_core[rows] = rows[first][which], True
    # Border points anew: cuML gives one between two clusters to either when it works in batches.
    label = number_clusters(
        torch.from_numpy(root), torch.from_numpy(is_core), edges(graph, eps)
    ).numpy()
    return label, is_core


def free_bytes() -> int:
    """Most that a task should take of the GPU of this process."""
    torch.cuda.empty_cache()  # what torch keeps for itself counts as taken
    return int(FREE_SHARE * torch.cuda.mem_get_info()[0])


def plan_blocks(graph: Graph, min_samples: int, budget_bytes: int) -> list[Block]:
    """Pack the components of a graph, largest first, each into the first block with room for it.

    A component of fewer than ``min_samples`` images has no core point and is in no block.
    """
    most = isqrt(int(budget_bytes / (VALUE_BYTES + WORK_BYTES)))  # rows of a matrix
    if graph.count <= most:
        return [Block("whole", np.arange(graph.count))]
    ones, shape = np.ones(len(graph.row), np.int8), (graph.count, graph.count)
    links = coo_array((ones, (graph.row, graph.col)), shape=shape)
    component = connected_components(links, directed=False)[1]
    size = np.bincount(component)
    falling = np.argsort(-size, kind="stable")
    falling = falling[size[falling] >= min_samples]
    large, fit = falling[size[falling] > most], falling[size[falling] <= most]
    number = np.full(len(size), -1)  # of each component's block
    number[large] = np.arange(len(large))
    room = np.full(2 * size[fit].sum() // max(1, most) + 1, most)  # only one stays under half full
    for c in fit:
        first = np.argmax(room >= size[c])
        room[first] -= size[c]
        number[c] = len(large) + first
    number = number[component]
    order = np.argsort(number, kind="stable")
    starts = np.searchsorted(number[order], np.arange(number.max() + 1))
    rows = np.split(order, starts)[1:]
    return [Block("graph" if n < len(large) else "block", part) for n, part in enumerate(rows)]


def cluster_block(graph: Graph, eps: float, min_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """``cuml.cluster.DBSCAN`` on the dense distances of a graph, 1 where it has no pair.

    Args:
        graph: n images, whose matrix and cuML's work on it fit the GPU: 9.2 n^2 bytes.
        eps: radius, at most ``graph.eps``; compared as float32.
        min_samples: images within ``eps`` of a core point, itself included.

    Returns:
        label: (n,) int64, -1 for outliers. From 46,341 images cuML works in batches, and a border
            point may have any of its clusters.
        is_core: (n,) bool.

    Raises:
        UsageError: cuML is not installed.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    row, col, distance = (
        as_tensor(part).to(device) for part in (graph.row, graph.col, graph.distance)
    )
    matrix = torch.ones(graph.count, graph.count, device=device)
    matrix[row, col] = matrix[col, row] = distance
    matrix.fill_diagonal_(0)
    if device == "cuda":
        torch.cuda.synchronize()  # cuML may read on another stream
    found = cuml_class()(
        eps=float(np.float32(eps)),
        min_samples=min_samples,
        metric="precomputed",
        max_mbytes_per_batch=int(WORK_BYTES * graph.count**2 / 1e6) + 1,
        output_type="numpy",
    ).fit(matrix)
    is_core = np.zeros(graph.count, np.bool_)
    is_core[found.core_sample_indices_] = True
    return found.labels_.astype(np.int64), is_core


def cuml_class() -> Any:
    """``cuml.cluster.DBSCAN``, imported only where it runs.

    Raises:
        UsageError: cuML is not installed.
    """
    try:
        from cuml.cluster import DBSCAN  # type: ignore[import-not-found]
    except ImportError as error:
        raise UsageError(
            "DBSCAN backend 'cuml' is not installed: pip install '.[gpu]' in the checkout, "
            "or choose the backend 'cpu'"
        ) from error
    return DBSCAN


def _parts(graph: Graph, blocks: list[Block]) -> list[Graph]:
    """The graph inside each block, whose rows are numbered from 0."""
    number, place = np.full(graph.count, -1), np.zeros(graph.count, np.int32)
    for n, block in enumerate(blocks):
        number[block.rows], place[block.rows] = n, np.arange(len(block.rows))
    number = number[graph.row]
    order = np.argsort(number, kind="stable")
    starts = np.searchsorted(number[order], np.arange(len(blocks)))
    return [
        Graph(
            count=len(block.rows),
            eps=graph.eps,
            row=place[graph.row[pairs]],
            col=place[graph.col[pairs]],
            distance=graph.distance[pairs],
        )
        for block, pairs in zip(blocks, np.split(order, starts)[1:], strict=True)
    ]
