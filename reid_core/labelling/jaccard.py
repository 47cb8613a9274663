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

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from reid_core.kernel import kernel
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

    def within(self, eps: float) -> "Graph":
        """The pairs within a smaller radius; compared as float32."""
        near = self.distance <= np.float32(eps)
        return Graph(self.count, eps, self.row[near], self.col[near], self.distance[near])


class Rows(NamedTuple):
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
    whole = range(len(feature))
    check_pairs(neighbours.row.shape[1], k2, eps)
    weight = weights(neighbours, whole, [(0, feature)])
    weight = expanded(neighbours.row, weight, whole, k2)
    return pairs_within(weight, inverted(weight), whole, eps)


def check_pairs(k1: int, k2: int, eps: float) -> None:
    """Refuse a ``k2`` or ``eps`` out of range, where lists have ``k1`` columns.

    Raises:
        ValueError: says which and what is usual.
    """
    if not 1 <= k2 <= k1:
        raise ValueError(
            f"k2 must lie in 1..{k1} (k1, at most the number of images), got {k2}; 6 is usual"
        )
    if not 0 < np.float32(eps) < 1:
        raise ValueError(f"eps must lie in (0, 1), got {eps}; 0.4 to 0.7 is usual")


def weights(neighbours: Neighbours, rows: range, blocks: Iterable[tuple[int, np.ndarray]]) -> Rows:
    """The given rows of V before query expansion.

    Args:
        neighbours: of all images.
        rows: consecutive images that lie in one block.
        blocks: the first row and the features (M, D) of every block of the images; the one with
            ``rows`` comes first. One is read at a time.
    """
    half = min(neighbours.row.shape[1], round(neighbours.row.shape[1] / 2) + 1)  # half to even
    out = _rows(_members, rows, neighbours, half)
    own = None
    for first, block in blocks:
        if own is None:
            own = block[rows.start - first : rows.stop - first]
        over_rows(_fill_products, len(rows), out, own, first, block, pieces=PIECES)
    over_rows(_softmax, len(rows), out, pieces=PIECES)
    return out


def expanded(index: np.ndarray, weight: Rows, rows: range, k2: int) -> Rows:
    """The given rows of V after query expansion, from the lists (N, k1) and all rows before it."""
    if k2 == 1:
        piece = slice(weight.begin[rows.start], weight.begin[rows.stop])
        begin = weight.begin[rows.start : rows.stop + 1] - weight.begin[rows.start]
        return Rows(begin, weight.col[piece], weight.value[piece])
    return _rows(_expand, rows, index, weight, k2)


def pairs_within(weight: Rows, columns: Rows, rows: range, eps: float) -> Graph:
    """The part of the graph whose smaller image lies in ``rows``; ``columns`` is V inverted."""
    pairs = _rows(_pairs, rows, weight, columns, np.float32(eps))
    row = np.repeat(np.arange(rows.start, rows.stop, dtype=np.int32), np.diff(pairs.begin))
    return Graph(len(weight.begin) - 1, eps, row, pairs.col, pairs.value)


def joined(parts: Sequence[Rows]) -> Rows:
    """Consecutive blocks of rows as one."""
    length, col, value = zip(*((np.diff(p.begin), p.col, p.value) for p in parts), strict=True)
    begin = np.concatenate([[0], np.cumsum(np.concatenate(length))])
    return Rows(begin, np.concatenate(col), np.concatenate(value))


def inverted(rows: Rows) -> Rows:
    """The columns of a square matrix, each in row order."""
    count = len(rows.begin) - 1
    columns = csr_array((rows.value, rows.col, rows.begin), shape=(count, count)).tocsc()
    return Rows(columns.indptr.astype(np.int64), columns.indices.astype(np.int32), columns.data)


def _rows(
    kernel: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]], rows: range, *args: object
) -> Rows:
    """Run a kernel that returns (length of each row, columns, values) of its range of rows."""
    parts = over_rows(kernel, len(rows), rows.start, *args, pieces=PIECES)
    length, col, value = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Rows(np.concatenate([[0], np.cumsum(length)]), col, value)


@kernel()
def _with_room(array: np.ndarray, size: int) -> np.ndarray:
    """The array itself, or a copy with twice the places where it has fewer than ``size``."""
    if size <= len(array):
        return array
    larger = np.empty(max(size, 2 * len(array)), array.dtype)
    for place, value in enumerate(array):
        larger[place] = value
    return larger


@kernel()
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


@kernel()
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


@kernel()
def _members(
    start: int, stop: int, first: int, neighbours: Neighbours, half: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R* of the rows ``first + start..first + stop``; similarities where the list has them or NaN."""
    count, k1 = neighbours.row.shape
    seen = np.full((2, count), -1, np.int32)
    similarity = np.empty(count, np.float32)  # valid where known[j] == i
    known = np.full(count, -1, np.int32)
    member = np.empty(k1 * (half + 1), np.int32)
    near = np.empty(half, np.int32)
    length = np.empty(stop - start, np.int64)
    col, value, used = np.empty(1024, np.int32), np.empty(1024, np.float32), 0
    for i in range(first + start, first + stop):
        for place in range(k1):
            known[neighbours.row[i, place]] = i
            similarity[neighbours.row[i, place]] = neighbours.similarity[i, place]
        total = _expanded(i, neighbours.row, half, seen, member, near)
        col, value = _with_room(col, used + total), _with_room(value, used + total)
        for place, j in enumerate(member[:total]):
            col[used + place] = j
            value[used + place] = similarity[j] if known[j] == i else np.nan
        length[i - first - start] = total
        used += total
    return length, col[:used], value[:used]


@kernel()
def _fill_products(
    start: int, stop: int, rows: Rows, own: np.ndarray, first: int, block: np.ndarray
) -> None:
    """Put in the products of rows ``own`` with images of a block that starts at image ``first``."""
    for i in range(start, stop):
        for place in range(rows.begin[i], rows.begin[i + 1]):
            j = rows.col[place] - first
            if np.isnan(rows.value[place]) and 0 <= j < len(block):
                rows.value[place] = exact_product(own[i], block[j])


@kernel()
def _softmax(start: int, stop: int, rows: Rows) -> None:
    """Turn the similarities of rows ``start..stop`` into weights."""
    for i in range(start, stop):
        norm = 0.0
        for place in range(rows.begin[i], rows.begin[i + 1]):
            rows.value[place] = np.exp(2.0 * rows.value[place] - 2.0)
            norm += rows.value[place]
        for place in range(rows.begin[i], rows.begin[i + 1]):
            rows.value[place] /= norm


@kernel()
def _expand(
    start: int, stop: int, first: int, index: np.ndarray, weight: Rows, k2: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows ``first + start..first + stop`` of V after query expansion."""
    mean = np.zeros(len(index), np.float32)
    touched = np.empty(len(index), np.int32)
    length = np.empty(stop - start, np.int64)
    col, value, used = np.empty(1024, np.int32), np.empty(1024, np.float32), 0
    for i in range(first + start, first + stop):
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
        length[i - first - start] = total
        used += total
    return length, col[:used], value[:used]


@kernel()
def _pairs(
    start: int, stop: int, first: int, weight: Rows, inverted: Rows, eps: np.float32
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For rows i in ``first + start..first + stop`` the columns j > i with d(i, j) <= eps."""
    count = len(weight.begin) - 1
    shared = np.zeros(count, np.float32)  # t
    touched = np.empty(count, np.int32)
    length = np.empty(stop - start, np.int64)
    col, value, used = np.empty(1024, np.int32), np.empty(1024, np.float32), 0
    for i in range(first + start, first + stop):
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
        before = used
        for j in touched[:total]:
            distance = np.float32(1) - shared[j] / (np.float32(2) - shared[j])
            shared[j] = 0
            if distance <= eps:
                col[used] = j
                value[used] = max(distance, np.float32(0))
                used += 1
        length[i - first - start] = used - before
    return length, col[:used], value[:used]
