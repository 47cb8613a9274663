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

from reid_core.errors import UsageError
from reid_core.hardware import default_device
from reid_core.kernel import kernel
from reid_core.labelling.screens import (
    BACKENDS,
    BLOCK_VALUES,
    Candidates,
    float32_error,
    kth_largest,
)
from reid_core.threads import over_rows

MANY = 10_000  # rows; of fewer the full search is quick

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
    if not 1 <= k <= len(feature):
        raise ValueError(f"k must lie in 1..{len(feature)} (the number of images), got {k}")
    return nearest_between(feature, feature, k, backend=backend, device=device)[0]


def nearest_between(
    one: np.ndarray,
    two: np.ndarray,
    k: int,
    *,
    backend: str = "auto",
    device: str | torch.device | None = None,
) -> tuple[Neighbours, Neighbours]:
    """The k nearest rows in ``two`` of every row of ``one``, and the other way round.

    Args:
        one: (N, D) float32 unit rows.
        two: (M, D) float32 unit rows; the same array for a set with itself.
        k: at least 1; where there are fewer rows, they are all given.
        backend: as in ``nearest``; the rest as well.
        device: as in ``nearest``.
    """
    name = "torch" if backend == "auto" else backend
    if name not in BACKENDS:
        raise UsageError(f"no k-NN backend {name!r}; there are auto, {', '.join(BACKENDS)}")
    where = torch.device(device) if device else default_device()
    found = BACKENDS[name](one, two, 2 * k + 4, where)
    first, again = _ranked(one, two, found[0], k)
    second = first
    if one is not two:
        second, more = _ranked(two, one, found[1], k)
        again += more
    logger.info(
        "k-NN of %d and %d rows by %s on %s, %d searched again",
        len(one),
        len(two),
        name,
        where,
        again,
    )
    return first, second


def merge_neighbours(parts: list[tuple[int, Neighbours]], k: int) -> Neighbours:
    """The k nearest of all parts, each the nearest of the same rows in a block of the images.

    Args:
        parts: the first row of the block, and the neighbours (N, any width) counted from it.
        k: neighbours to keep; all where there are fewer.
    """
    count = len(parts[0][1].row)
    k = min(k, sum(part.row.shape[1] for _, part in parts))
    out = Neighbours(np.empty((count, k), np.int32), np.full((count, k), -np.inf, np.float32))
    fill = np.zeros(count, np.int32)
    for first, part in parts:
        over_rows(_merge, count, first, part, fill, out)
    return out


def check_unit_rows(feature: np.ndarray, first: int = 0) -> None:
    """Refuse anything but (N, D) float32 rows of length 1, to 1e-3; they count from ``first``.

    Raises:
        ValueError: names the first row that is wrong.
    """
    if feature.ndim != 2 or feature.dtype != np.float32:
        raise ValueError(f"features must be (N, D) float32, got {feature.shape} {feature.dtype}")
    length = np.sqrt(np.einsum("nd,nd->n", feature, feature))
    wrong = np.flatnonzero(~(np.abs(length - 1) < 1e-3))
    if len(wrong):
        raise ValueError(
            f"feature row {first + wrong[0]} has length {length[wrong[0]]:.4g} ({len(wrong)} such); rows "
            "must be finite and of unit length: divide by the norm, look for NaN in the weights"
        )


def _ranked(
    query: np.ndarray, images: np.ndarray, found: Candidates, k: int
) -> tuple[Neighbours, int]:
    """The exact neighbours of screened rows; and how many rows had to be searched again."""
    shape = len(query), min(k, len(images))
    out = Neighbours(np.empty(shape, np.int32), np.empty(shape, np.float32))
    proven = np.concatenate(over_rows(_rank_candidates, len(query), query, images, found, out))
    again = np.flatnonzero(~proven)
    if len(again) > len(query) // 2 and len(query) > MANY:
        logger.warning(
            "%d of %d rows have too many neighbours at almost the same distance and are compared with every "
            "image, which is slow: have the features collapsed?",
            len(again),
            len(query),
        )
    _search(query, images, again, out)
    return out, len(again)


def _search(query: np.ndarray, images: np.ndarray, rows: np.ndarray, out: Neighbours) -> None:
    """Fill ``rows`` of ``out`` from products with all images."""
    slack = float32_error(query.shape[1])
    step = max(1, BLOCK_VALUES // len(images))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        found = Neighbours(out.row[part], out.similarity[part])
        some = query[part]
        over_rows(_rank_all, len(part), some, images, some @ images.T, slack, found)
        out.row[part], out.similarity[part] = found


@kernel()
def _rank_candidates(
    start: int,
    stop: int,
    query: np.ndarray,
    images: np.ndarray,
    found: Candidates,
    out: Neighbours,
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
                    s = exact_product(query[row], images[other])
                    count = insert(other, s, count, out.row[row], out.similarity[row])
        cut = found.cut[row]
        all_seen = cut == -np.inf
        proven[row - start] = all_seen or _reach(cut, row, found) < out.similarity[row, k - 1]
    return proven


@kernel()
def _rank_all(
    start: int,
    stop: int,
    query: np.ndarray,
    images: np.ndarray,
    product: np.ndarray,
    slack: float,
    out: Neighbours,
) -> None:
    """Order all images for rows ``start..stop``, given products (rows, M) that are off by slack."""
    k = out.row.shape[1]
    for row in range(start, stop):
        count = 0
        least = kth_largest(product[row], k) - 2 * slack
        for other in range(len(images)):
            if product[row, other] >= least:
                s = exact_product(query[row], images[other])
                count = insert(other, s, count, out.row[row], out.similarity[row])


@kernel()
def _merge(
    start: int, stop: int, first: int, part: Neighbours, fill: np.ndarray, out: Neighbours
) -> None:
    """Put the neighbours of rows ``start..stop`` in one block among those found before."""
    for row in range(start, stop):
        for place in range(part.row.shape[1]):
            other = first + part.row[row, place]
            s = part.similarity[row, place]
            fill[row] = insert(other, s, fill[row], out.row[row], out.similarity[row])


@kernel()
def _reach(value: float, row: int, found: Candidates) -> float:
    """The largest exact product that a screened value may stand for."""
    return value + found.relative * abs(value) + found.slack[row]


@kernel(fastmath=True)
def exact_product(a: np.ndarray, b: np.ndarray) -> float:
    """Inner product of two float32 rows (D,), summed in float64 and rounded to float32."""
    total = 0.0
    for d in range(len(a)):
        total += np.float64(a[d]) * np.float64(b[d])
    return np.float32(total)  # type: ignore[return-value]


@kernel()
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
