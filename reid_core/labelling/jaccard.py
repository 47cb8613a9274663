"""k-reciprocal Jaccard distance as a sparse graph (Zhong et al., CVPR 2017; the peers' constants).

N images, k1 neighbours a list, R(i, k) = {j in list(i)[:k + 1] : i in list(j)[:k + 1]}. Lists have
k1 columns, so R(i, k1) uses k1 of them. Then

- R*(i) = R(i, k1) and every R(c, k1/2), c in R(i, k1), of which more than 2/3 lie in R(i, k1);
- V(i, j) = softmax over j in R*(i) of -(2 - 2 <f_i, f_j>), zero elsewhere;
- V(i) <- mean of V over the first k2 of list(i) (query expansion);
- d(i, j) = 1 - t / (2 - t), t = sum over m of min(V(i, m), V(j, m)), clipped at 0.

A row of V has tens of non-zeros whatever N is, and d = 1 for rows without a common one, so inverted
lists find the pairs with d <= eps: O(N s^2) time for s non-zeros a row, memory linear in N.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit
from scipy.sparse import csr_array

from reid_core.labelling.neighbours import Neighbours, exact_product
from reid_core.threads import over_rows

PIECES = 8  # ranges of rows a thread


@dataclass(frozen=True, eq=False)
class Graph:
    """All pairs of images within ``eps``, each once; any other pair lies farther apart."""

    count: int  # N
    eps: float  # in (0, 1)
    row: np.ndarray  # (E,) int32, increasing
    col: np.ndarray  # (E,) int32, col > row
    distance: np.ndarray  # (E,) float32, in [0, eps]; 0 for images that cannot be told apart


class _Rows(NamedTuple):
    """Sparse rows: those of row i lie at ``begin[i]:begin[i + 1]``."""

    begin: np.ndarray  # (N + 1,) int64
    col: np.ndarray  # (S,) int32
    value: np.ndarray  # (S,) float32


def jaccard_graph(
    feature: np.ndarray, neighbours: Neighbours, *, k2: int = 6, eps: float = 0.6
) -> Graph:
    """The pairs of images with a k-reciprocal Jaccard distance of at most ``eps``.

    Args:
        feature: (N, D) float32 unit rows.
        neighbours: their k1 nearest (N, k1); 30 is usual. With N < k1 images give all N.
        k2: rows averaged in query expansion, the own one included, 1 to k1; with 1 there is none.
        eps: largest distance, in (0, 1); compared as float32.

    Raises:
        ValueError: ``k2`` or ``eps`` is out of range.
    """
    count, k1 = neighbours.row.shape
    if not 1 <= k2 <= k1:
        raise ValueError(
            f"k2 must lie in 1..{k1} (k1, at most the number of images), got {k2}; 6 is usual"
        )
    if not 0 < np.float32(eps) < 1:
        raise ValueError(f"eps must lie in (0, 1), got {eps}; 0.4 to 0.7 is usual")
    half = min(k1, round(k1 / 2) + 1)  # columns of the half list; round is half to even
    weight = _rows(_weights, count, feature, neighbours, half)
    if k2 > 1:
        weight = _rows(_expand, count, neighbours.row, weight, k2)
    pairs = _rows(_pairs, count, weight, _inverted(weight), np.float32(eps))
    row = np.repeat(np.arange(count, dtype=np.int32), np.diff(pairs.begin))
    return Graph(count=count, eps=eps, row=row, col=pairs.col, distance=pairs.value)


def _rows(
    kernel: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]], count: int, *args: object
) -> _Rows:
    """Run a kernel that returns (length of each row, columns, values) of its range of rows."""
    parts = over_rows(kernel, count, *args, pieces=PIECES)
    length, col, value = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _Rows(np.concatenate([[0], np.cumsum(length)]), col, value)


def _inverted(rows: _Rows) -> _Rows:
    """The columns of a square matrix, each in row order."""
    count = len(rows.begin) - 1
    columns = csr_array((rows.value, rows.col, rows.begin), shape=(count, count)).tocsc()
    return _Rows(columns.indptr.astype(np.int64), columns.indices.astype(np.int32), columns.data)


@njit(nogil=True, cache=True)
def _with_room(array: np.ndarray, size: int) -> np.ndarray:
    """The array itself, or a copy with twice the places where it has fewer than ``size``."""
    if size <= len(array):
        return array
    larger = np.empty(max(size, 2 * len(array)), array.dtype)
    for place, value in enumerate(array):
        larger[place] = value
    return larger


@njit(nogil=True, cache=True)
def _reciprocal(index: np.ndarray, i: int, columns: int, out: np.ndarray) -> int:
    """Write R(i) over the first ``columns`` of the lists to ``out``; how many there are."""
    found = 0
    for j in index[i, :columns]:
        for back in index[j, :columns]:
            if back == i:
                out[found] = j
                found += 1
                break
    return found


@njit(nogil=True, cache=True)
def _expanded(
    i: int, index: np.ndarray, half: int, seen: np.ndarray, member: np.ndarray, near: np.ndarray
) -> int:
    """Write R*(i) to ``member``; its size. ``seen`` (2, N) marks R(i, k1) and R*(i) with i."""
    own = _reciprocal(index, i, index.shape[1], member)
    for j in member[:own]:
        seen[0, j] = seen[1, j] = i
    total = own
    for c in member[:own]:
        found = _reciprocal(index, c, half, near)
        overlap = 0
        for j in near[:found]:
            overlap += seen[0, j] == i
        if 3 * overlap > 2 * found:
            for j in near[:found]:
                if seen[1, j] != i:
                    seen[1, j] = i
                    member[total] = j
                    total += 1
    return total


@njit(nogil=True, cache=True)
def _weights(
    start: int, stop: int, feature: np.ndarray, neighbours: Neighbours, half: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows ``start..stop`` of V before query expansion."""
    count, k1 = neighbours.row.shape
    seen = np.full((2, count), -1, np.int32)
    similarity = np.empty(count, np.float32)  # valid where known[j] == i
    known = np.full(count, -1, np.int32)
    member = np.empty(k1 * (half + 1), np.int32)
    near = np.empty(half, np.int32)
    length = np.empty(stop - start, np.int64)
    col, value, used = np.empty(1024, np.int32), np.empty(1024, np.float32), 0
    for i in range(start, stop):
        for place in range(k1):
            known[neighbours.row[i, place]] = i
            similarity[neighbours.row[i, place]] = neighbours.similarity[i, place]
        total = _expanded(i, neighbours.row, half, seen, member, near)
        col, value = _with_room(col, used + total), _with_room(value, used + total)
        norm = 0.0
        for place, j in enumerate(member[:total]):
            s = similarity[j] if known[j] == i else exact_product(feature[i], feature[j])
            col[used + place] = j
            value[used + place] = np.exp(2.0 * s - 2.0)
            norm += value[used + place]
        for place in range(used, used + total):
            value[place] /= norm
        length[i - start] = total
        used += total
    return length, col[:used], value[:used]


@njit(nogil=True, cache=True)
def _expand(
    start: int, stop: int, index: np.ndarray, weight: _Rows, k2: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows ``start..stop`` of V after query expansion."""
    mean = np.zeros(len(index), np.float32)
    touched = np.empty(len(index), np.int32)
    length = np.empty(stop - start, np.int64)
    col, value, used = np.empty(1024, np.int32), np.empty(1024, np.float32), 0
    for i in range(start, stop):
        total = 0
        for r in index[i, :k2]:
            for place in range(weight.begin[r], weight.begin[r + 1]):
                j = weight.col[place]
                if mean[j] == 0:
                    touched[total] = j
                    total += 1
                mean[j] += weight.value[place]
        col, value = _with_room(col, used + total), _with_room(value, used + total)
        for place, j in enumerate(touched[:total]):
            col[used + place] = j
            value[used + place] = mean[j] / np.float32(k2)
            mean[j] = 0
        length[i - start] = total
        used += total
    return length, col[:used], value[:used]


@njit(nogil=True, cache=True)
def _pairs(
    start: int, stop: int, weight: _Rows, inverted: _Rows, eps: np.float32
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For rows i in ``start..stop`` the columns j > i with d(i, j) <= eps."""
    count = len(weight.begin) - 1
    shared = np.zeros(count, np.float32)  # t
    touched = np.empty(count, np.int32)
    length = np.empty(stop - start, np.int64)
    col, value, used = np.empty(1024, np.int32), np.empty(1024, np.float32), 0
    for i in range(start, stop):
        total = 0
        for place in range(weight.begin[i], weight.begin[i + 1]):
            m, own = weight.col[place], weight.value[place]
            for other in range(inverted.begin[m + 1] - 1, inverted.begin[m] - 1, -1):
                j = inverted.col[other]
                if j <= i:
                    break
                if shared[j] == 0:
                    touched[total] = j
                    total += 1
                shared[j] += min(own, inverted.value[other])
        col, value = _with_room(col, used + total), _with_room(value, used + total)
        first = used
        for j in touched[:total]:
            distance = np.float32(1) - shared[j] / (np.float32(2) - shared[j])
            shared[j] = 0
            if distance <= eps:
                col[used] = j
                value[used] = max(distance, np.float32(0))
                used += 1
        length[i - start] = used - first
    return length, col[:used], value[:used]
