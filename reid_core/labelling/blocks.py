"""The Jaccard graph of images that lie in blocks, as independent tasks: no task holds all features.

N images in B blocks. A pair of blocks is one k-NN task that serves the rows of both, so that each
product is taken once; the lists of a block are merged, and the Jaccard stage goes block by block.
What every task may read is linear in N without the feature size: the lists (8 k1 bytes an image) and
V after query expansion (about 1.6 kB an image, rows and columns).
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reid_core.labelling import jaccard
from reid_core.labelling.jaccard import Graph, Rows
from reid_core.labelling.jaccard_torch import jaccard_graph_torch
from reid_core.labelling.neighbours import (
    Neighbours,
    check_unit_rows,
    merge_neighbours,
    nearest_between,
)
from reid_core.labelling.tasks import Tasks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Blocks:
    """Consecutive blocks of the feature rows of all images, in ``image_id`` order."""

    feature: Sequence[Any]  # references to (N_b, D) float32 unit rows
    edges: Sequence[int]  # (B + 1,): block b holds the rows edges[b]:edges[b + 1]

    def rows(self, block: int) -> range:
        """The images of a block."""
        return range(self.edges[block], self.edges[block + 1])


def nearest_of_all(blocks: Blocks, k: int, tasks: Tasks, *, backend: str = "auto") -> Any:
    """A reference to the Neighbours (N, k) of all images; see ``neighbours.nearest``."""
    count = len(blocks.feature)
    nearest: list[Any] = [None] * count
    ahead: list[Any] = []
    for offset in range(count // 2 + 1):  # each wave serves every block once or twice
        wave = [(i, (i + offset) % count) for i in range(count)]
        tiles = {
            pair: tasks.submit(_tile, k, backend, blocks.edges[pair[0]],
                               *(blocks.feature[b] for b in dict.fromkeys(pair)), gpu=True)
            for pair in (wave[: count // 2] if 2 * offset == count else wave)
        }  # fmt: skip
        for (i, j), tile in tiles.items():
            nearest[i] = tasks.submit(_merge, k, nearest[i], blocks.edges[j], tile, 0)
            if i != j:
                nearest[j] = tasks.submit(_merge, k, nearest[j], blocks.edges[i], tile, 1)
        if not offset:  # the tiles that check the rows: a bad one ends it here
            tasks.get([tasks.submit(len, found) for found in nearest])
        tasks.wait(ahead, "k-NN tiles")  # two waves are under way: more would fill the memory
        ahead = list(nearest)
    tasks.wait(ahead, "k-NN tiles")
    return tasks.submit(_stacked, *nearest)


def jaccard_of_all(
    blocks: Blocks, neighbours: Any, *, k2: int, eps: float, tasks: Tasks, gpu: bool = False
) -> Graph:
    """The pairs within ``eps``; the same graph as ``jaccard.jaccard_graph``.

    Args:
        blocks: of all images.
        neighbours: the reference that ``nearest_of_all`` gave.
        k2: rows averaged in query expansion.
        eps: largest distance.
        tasks: where the work runs.
        gpu: by torch on a GPU, where all images are in one block.
    """
    count = range(len(blocks.feature))
    if gpu and len(count) == 1:
        graph = tasks.submit(_on_gpu, blocks.feature[0], neighbours, k2, eps, gpu=True)
        return tasks.get([graph])[0]
    if gpu:
        logger.info("the Jaccard graph of %d blocks is made on CPUs; of one, on a GPU", len(count))
    every = list(blocks.feature)  # in a list, references stay references: a task gets one at a time
    weight = [tasks.submit(_weights, tasks, neighbours, every, blocks.edges, b) for b in count]
    tasks.wait(weight, "k-reciprocal sets")
    weight = tasks.submit(_joined, *weight)
    weight = [tasks.submit(_expanded, neighbours, weight, blocks.rows(b), k2) for b in count]
    tasks.wait(weight, "query expansion")
    weight = tasks.submit(_joined, *weight)
    columns = tasks.submit(jaccard.inverted, weight)
    parts = [
        tasks.submit(jaccard.pairs_within, weight, columns, blocks.rows(b), eps) for b in count
    ]
    tasks.wait(parts, "pairs within eps")
    graphs = tasks.get(parts)
    row, col, distance = (
        np.concatenate([getattr(part, name) for part in graphs])
        for name in ("row", "col", "distance")
    )
    return Graph(graphs[0].count, eps, row, col, distance)


def _tile(k: int, backend: str, first: int, *blocks: np.ndarray) -> tuple[Neighbours, Neighbours]:
    """The k nearest between two blocks, or in one; checks the one, whose first image is ``first``."""
    if len(blocks) == 1:
        check_unit_rows(blocks[0], first)
    return nearest_between(blocks[0], blocks[-1], k, backend=backend)


def _merge(
    k: int, found: Neighbours | None, first: int, tile: tuple[Neighbours, Neighbours], side: int
) -> Neighbours:
    """The k nearest of a block's rows after one more tile, whose other block begins at ``first``."""
    parts = [(first, tile[side])]
    return merge_neighbours(parts if found is None else [(0, found), *parts], k)


def _stacked(*parts: Neighbours) -> Neighbours:
    if len(parts) == 1:
        return parts[0]
    return Neighbours(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _joined(*parts: Rows) -> Rows:
    return parts[0] if len(parts) == 1 else jaccard.joined(parts)


def _weights(
    tasks: Tasks,
    neighbours: Neighbours,
    feature: list[Any],
    edges: Sequence[int],
    block: int,
) -> Rows:
    def each() -> Iterator[tuple[int, np.ndarray]]:
        for b in sorted(range(len(feature)), key=lambda b: b != block):
            yield edges[b], tasks.get([feature[b]])[0]

    return jaccard.weights(neighbours, range(edges[block], edges[block + 1]), each())


def _expanded(neighbours: Neighbours, weight: Rows, rows: range, k2: int) -> Rows:
    return jaccard.expanded(neighbours.row, weight, rows, k2)


def _on_gpu(feature: np.ndarray, neighbours: Neighbours, k2: int, eps: float) -> Graph:
    return jaccard_graph_torch(feature, neighbours, k2=k2, eps=eps, device=torch.device("cuda"))
