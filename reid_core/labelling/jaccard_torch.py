"""The graph of jaccard.py by torch, on a GPU.

N images, D feature size, k1 neighbours a list, k of them looked at, R rows of a chunk, S non-zeros
of V. Rows meet in chunks of about as many values each, and a stable sort brings together what is to
be summed: neither a second run nor another size of the chunks changes a bit.
Tested on torch's CPU device, not run on a GPU.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reid_core.labelling.jaccard import Graph, check_pairs
from reid_core.labelling.neighbours import Neighbours
from reid_core.labelling.screens import as_tensor

BLOCK_VALUES = 2**26  # of one chunk; each takes about 100 bytes for a while


class _Rows(NamedTuple):
    """Sparse rows: those of row i lie at ``begin[i]:begin[i + 1]``."""

    begin: Tensor  # (N + 1,) int64
    col: Tensor  # (S,) int32, increasing in a row
    value: Tensor  # (S,) float32


def jaccard_graph_torch(
    feature: np.ndarray,
    neighbours: Neighbours,
    *,
    k2: int = 6,
    eps: float = 0.6,
    device: str | torch.device,
    block_values: int = BLOCK_VALUES,
) -> Graph:
    """``jaccard.jaccard_graph`` on a device: distances to 1e-6, so the same pairs but for those so near ``eps``.

    Args:
        feature: (N, D) float32 unit rows.
        neighbours: their k1 nearest (N, k1).
        k2: rows averaged in query expansion, the own one included, 1 to k1; with 1 there is none.
        eps: largest distance, in (0, 1); compared as float32.
        device: where to compute.
        block_values: of one chunk; it bounds the memory and changes no number.

    Returns:
        The columns of a row increase.

    Raises:
        ValueError: ``k2`` or ``eps`` is out of range.

    O(N s^2 log N) time for s non-zeros a row, near 100. Memory on the device: the features, about
    60 s N bytes, and 100 bytes for each of ``block_values``.
    """
    k1 = neighbours.row.shape[1]
    check_pairs(k1, k2, eps)
    half = min(k1, round(k1 / 2) + 1)  # columns of the half list; round is half to even
    x_ND = as_tensor(feature).to(device)
    index = as_tensor(neighbours.row).to(device)
    weight = _rows(_weights(x_ND, index, half, block_values))
    if k2 > 1:
        weight = _rows(_expanded(index[:, :k2], weight, block_values))
    parts = _pairs(weight, float(np.float32(eps)), block_values)
    row, col, distance = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return Graph(count=len(feature), eps=eps, row=row, col=col, distance=distance)


def _rows(parts: Iterable[tuple[Tensor, Tensor, Tensor]]) -> _Rows:
    """Put together the rows of chunks: their lengths (R,), columns and values."""
    length, col, value = (torch.cat(part) for part in zip(*parts, strict=True))
    return _Rows(torch.nn.functional.pad(length.cumsum(0), (1, 0)), col, value)


def _summed(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The different keys (S,), rising, and the sums of their values in the order given."""
    if not len(key):  # which segment_reduce refuses
        return key, value
    key, order = key.sort(stable=True)
    key, length = key.unique_consecutive(return_counts=True)
    return key, torch.segment_reduce(value[order], "sum", lengths=length)


def _weights(
    x_ND: Tensor, index: Tensor, half: int, block_values: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """V before query expansion, in chunks of rows."""
    count, k1 = index.shape
    mutual, near_mutual = (_mutual(index[:, :k], block_values) for k in (k1, half))
    near_index, pairs = index[:, :half], max(1, block_values // x_ND.shape[1])
    for rows in torch.arange(count, device=index.device).split(max(1, block_values // k1 // half)):
        own, in_own = index[rows], mutual[rows]  # (R, k1); R(i, k1) is own[in_own]
        near, in_near = near_index[own], near_mutual[own] & in_own[..., None]  # (R, k1, half)
        overlap = in_near & _among(near, torch.where(in_own, own, count))
        in_near &= (3 * overlap.sum(2) > 2 * in_near.sum(2))[..., None]
        key = rows * count  # of (i, j): i N + j
        key = torch.cat([(key[:, None] + own)[in_own], (key[:, None, None] + near)[in_near]])
        key = key.unique()
        row, col = key // count, key % count
        products = [
            (x_ND[i].double() * x_ND[j].double()).sum(1).float()  # as neighbours.exact_product
            for i, j in zip(row.split(pairs), col.split(pairs), strict=True)
        ]
        value = (2 * torch.cat(products).double() - 2).exp()
        length = torch.bincount(row - rows[0], minlength=len(rows))
        norm = _summed(row, value)[1].repeat_interleave(length[length > 0])
        yield length, col.int(), (value / norm).float()


def _mutual(index: Tensor, block_values: int) -> Tensor:
    """Whether the image at (i, place) of the lists (N, k) has i in its own list: (N, k) bool."""
    count, k = index.shape
    rows = torch.arange(count, device=index.device).split(max(1, block_values // k**2))
    return torch.cat([(index[index[i]] == i[:, None, None]).any(2) for i in rows])


def _among(values: Tensor, own: Tensor) -> Tensor:
    """Which of ``values`` (R, a, b) are in the same row of ``own`` (R, k)."""
    own, flat = own.sort(dim=1).values, values.flatten(1)
    place = torch.searchsorted(own, flat).clamp_(max=own.shape[1] - 1)
    return (own.gather(1, place) == flat).view_as(values)


def _expanded(
    index: Tensor, weight: _Rows, block_values: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """V after query expansion over the lists (N, k2), in chunks of rows."""
    count, k2 = index.shape
    length = weight.begin.diff()
    for rows in _chunks(length[index].sum(1), block_values):
        near = index[rows].flatten()
        which, place = _ranges(weight.begin[near], length[near])
        key, value = _summed(which // k2 * count + weight.col[place], weight.value[place])
        yield (
            torch.bincount(key // count, minlength=rows.stop - rows.start),
            (key % count).int(),
            value / k2,
        )


def _pairs(weight: _Rows, eps: float, block_values: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pairs with j > i and d(i, j) <= eps, on the host: rows, columns, distances.

    Inverted lists hold the non-zeros of each column in row order, so the partners of a non-zero are
    those that follow it in its list.
    """
    count = len(weight.begin) - 1
    row = torch.repeat_interleave(weight.begin.diff())
    order = weight.col.sort(stable=True).indices
    listed_row, listed_value = row[order].int(), weight.value[order]
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    end = torch.bincount(weight.col, minlength=count).cumsum(0)
    follow = end[weight.col] - place - 1
    work = torch.zeros(count, dtype=torch.long, device=row.device).index_add_(0, row, follow)
    for rows in _chunks(work, block_values):
        here = slice(*weight.begin[[rows.start, rows.stop]].tolist())
        which, other = _ranges(place[here] + 1, follow[here])
        least = torch.minimum(weight.value[here][which], listed_value[other])
        key, shared = _summed(row[here][which] * count + listed_row[other], least)
        distance = 1 - shared / (2 - shared)
        near = distance <= eps
        i, j = key[near] // count, key[near] % count
        yield i.int().cpu(), j.int().cpu(), distance[near].clamp_(min=0).cpu()


def _chunks(work: Tensor, most: int) -> Iterator[slice]:
    """Ranges of rows whose ``work`` (N,) sums to at most ``most``, or one row that has more."""
    total = np.append(0, work.cumsum(0).cpu().numpy())
    start = 0
    while start < len(work):
        stop = int(np.searchsorted(total, total[start] + most, side="right")) - 1
        yield slice(start, max(start + 1, stop))
        start = max(start + 1, stop)


def _ranges(first: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """For all r, ``first[r]`` to ``first[r] + length[r]``: the r of each number, and the numbers."""
    which = torch.repeat_interleave(length)
    ahead = length.cumsum(0) - length
    return which, (first - ahead)[which] + torch.arange(len(which), device=which.device)
