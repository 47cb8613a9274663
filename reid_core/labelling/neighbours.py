"""Exact k nearest neighbours by inner product, in blocks. N images, D feature size, k neighbours.

1. A screen proposes candidates of every row by cheap products whose error is known.
2. The exact products of its candidates order them. The row is proven when nothing that the screen
   left out can reach its k-th neighbour.
3. A row that is not proven is compared with all N rows.

So every backend returns the same arrays: a similarity is the exact product rounded to float32, and
equal similarities are ordered by row.
"""

import logging
from typing import NamedTuple

import numpy as np
import torch
from numba import njit

from reid_core.errors import UsageError
from reid_core.labelling.screens import (
    BACKENDS,
    BLOCK_VALUES,
    Candidates,
    float32_error,
    kth_largest,
)
from reid_core.threads import over_rows

logger = logging.getLogger(__name__)


class Neighbours(NamedTuple):
    """The k nearest rows of every row, nearest first."""

    row: np.ndarray  # (N, k) int32
    similarity: np.ndarray  # (N, k) float32, never rising


def nearest(
    feature: np.ndarray,
    k: int,
    *,
    backend: str = "auto",
    device: str | torch.device | None = None,
) -> Neighbours:
    """The k rows with the largest inner products with each row, itself included at its place.

    Args:
        feature: (N, D) float32 unit rows.
        k: 1 to N.
        backend: ``torch`` or ``faiss``; ``auto`` is ``torch``.
        device: where to multiply; a CUDA device when there is one, else the CPU.

    Returns:
        Equal similarities are ordered by row. No backend, device or number of threads changes it.

    Raises:
        UsageError: the backend is unknown or not installed.
        ValueError: ``k`` is out of range, or a row is not finite and of unit length.

    O(N^2 D) time. Memory beyond the features: about 40 k N bytes, 2 D N bytes where the CPU
    multiplies in bfloat16 (4 D N on a GPU), and one block of products.
    """
    check_unit_rows(feature)
    count = len(feature)
    if not 1 <= k <= count:
        raise ValueError(f"k must lie in 1..{count} (the number of images), got {k}")
    name = "torch" if backend == "auto" else backend
    if name not in BACKENDS:
        raise UsageError(f"no k-NN backend {name!r}; there are auto, {', '.join(BACKENDS)}")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    found = BACKENDS[name](feature, min(2 * k + 4, count), where)
    out = Neighbours(np.empty((count, k), np.int32), np.empty((count, k), np.float32))
    proven = np.concatenate(over_rows(_rank_candidates, count, feature, found, out))
    again = np.flatnonzero(~proven)
    logger.info("k-NN of %d rows by %s on %s, %d searched again", count, name, where, len(again))
    _search(feature, again, out)
    return out


def check_unit_rows(feature: np.ndarray) -> None:
    """Refuse anything but (N, D) float32 rows of length 1, to 1e-3.

    Raises:
        ValueError: names the first row that is wrong.
    """
    if feature.ndim != 2 or feature.dtype != np.float32:
        raise ValueError(f"features must be (N, D) float32, got {feature.shape} {feature.dtype}")
    length = np.sqrt(np.einsum("nd,nd->n", feature, feature))
    wrong = np.flatnonzero(~(np.abs(length - 1) < 1e-3))
    if len(wrong):
        raise ValueError(
            f"feature row {wrong[0]} has length {length[wrong[0]]:.4g} ({len(wrong)} such); rows "
            "must be finite and of unit length: divide by the norm, look for NaN in the weights"
        )


def _search(feature: np.ndarray, rows: np.ndarray, out: Neighbours) -> None:
    """Fill ``rows`` of ``out`` from products with all rows."""
    slack = float32_error(feature.shape[1])
    step = max(1, BLOCK_VALUES // len(feature))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        product = feature[part] @ feature.T
        over_rows(_rank_all, len(part), feature, part, product, slack, out)


@njit(nogil=True, cache=True)
def _rank_candidates(
    start: int, stop: int, feature: np.ndarray, found: Candidates, out: Neighbours
) -> np.ndarray:
    """Order the candidates of rows ``start..stop`` by exact product; which of them are proven."""
    k = out.row.shape[1]
    proven = np.zeros(stop - start, np.bool_)
    for row in range(start, stop):
        count, fill = 0, found.fill[row]
        if fill < k:  # so many equal values that the screen dropped them all
            continue
        middle = kth_largest(found.value[row, :fill], k)
        for best in (True, False):  # the k that seem best first: most others then cannot reach
            for place in range(fill):
                value = found.value[row, place]
                if (value >= middle) == best and (
                    count < k or _reach(value, row, found) >= out.similarity[row, k - 1]
                ):
                    other = found.row[row, place]
                    s = exact_product(feature[row], feature[other])
                    count = insert(other, s, count, out.row[row], out.similarity[row])
        cut = found.cut[row]
        all_seen = cut == -np.inf
        proven[row - start] = all_seen or _reach(cut, row, found) < out.similarity[row, k - 1]
    return proven


@njit(nogil=True, cache=True)
def _rank_all(
    start: int,
    stop: int,
    feature: np.ndarray,
    rows: np.ndarray,
    product: np.ndarray,
    slack: float,
    out: Neighbours,
) -> None:
    """Order all images for ``rows[start:stop]``, given products (rows, N) that are off by slack."""
    images, k = len(feature), out.row.shape[1]
    for r in range(start, stop):
        row, count = rows[r], 0
        least = kth_largest(product[r], k) - 2 * slack
        for other in range(images):
            if product[r, other] >= least:
                s = exact_product(feature[row], feature[other])
                count = insert(other, s, count, out.row[row], out.similarity[row])


@njit(nogil=True, cache=True)
def _reach(value: float, row: int, found: Candidates) -> float:
    """The largest exact product that a screened value may stand for."""
    return value + found.relative * abs(value) + found.slack[row]


@njit(nogil=True, cache=True, fastmath=True)
def exact_product(a: np.ndarray, b: np.ndarray) -> float:
    """Inner product of two float32 rows (D,), summed in float64 and rounded to float32."""
    total = 0.0
    for d in range(len(a)):
        total += np.float64(a[d]) * np.float64(b[d])
    return np.float32(total)  # type: ignore[return-value]


@njit(nogil=True, cache=True)
def insert(other: int, s: float, count: int, row: np.ndarray, similarity: np.ndarray) -> int:
    """Put an image at its place among the best ``count`` of k; the new count."""
    place = count
    while place > 0 and (
        s > similarity[place - 1] or (s == similarity[place - 1] and other < row[place - 1])
    ):
        place -= 1
    if place == len(row):
        return count
    count = min(count + 1, len(row))
    for p in range(count - 1, place, -1):
        row[p], similarity[p] = row[p - 1], similarity[p - 1]
    row[place], similarity[place] = other, s
    return count
