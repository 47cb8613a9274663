"""Candidates for the nearest neighbours of every row, by block products whose error is known.

N images, D feature size, C candidates a row. On a CPU only the tiles on and above the diagonal are
multiplied, in bfloat16 if the CPU has units for it; a GPU multiplies rows by all rows in float32.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from reid_core.errors import UsageError
from reid_core.threads import over_rows

TILE = 2048  # rows and columns of one product on a CPU
CHUNK = 128  # values that are compared at once
BLOCK_VALUES = 2**26  # of one (rows, N) block on a GPU: 256 MiB
BFLOAT16_ROUNDING = 2.0**-8  # largest relative error of rounding to bfloat16
LONGEST = 1.002  # rows are of unit length to 1e-3


class Candidates(NamedTuple):
    """Candidates of every row in no order, and how far their values may be off.

    An exact product differs from its screened value v by at most ``slack[row] + relative * |v|``.
    """

    value: np.ndarray  # (N, C) float32
    row: np.ndarray  # (N, C) int32
    fill: np.ndarray  # (N,) int32, how many of the C places are taken
    cut: np.ndarray  # (N,) float32, no row left out has a larger value; -inf: none is out
    slack: np.ndarray  # (N,) float64
    relative: float


def screen_torch(feature: np.ndarray, keep: int, device: torch.device) -> Candidates:
    """At least ``keep`` candidates of every row (fewer when many values are equal), by torch."""
    if device.type == "cpu":
        return _by_tiles(feature, keep)
    return _by_rows(feature, keep, device)


def screen_faiss(feature: np.ndarray, keep: int, device: torch.device) -> Candidates:
    """The ``keep`` candidates of brute force; on the GPU if ``device`` is one and faiss knows it.

    Raises:
        UsageError: faiss is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise UsageError(
            "k-NN backend 'faiss' is not installed: pip install 'reid[cpu]' or 'reid[gpu]', "
            "or choose the backend 'torch'"
        ) from error
    metric = faiss.METRIC_INNER_PRODUCT
    if device.type == "cuda" and faiss.get_num_gpus():
        resources = faiss.StandardGpuResources()
        value, row = faiss.knn_gpu(resources, feature, feature, keep, metric=metric)
    else:
        value, row = faiss.knn(feature, feature, keep, metric=metric)
    return _in_order(value, row.astype(np.int32), feature.shape[1])


BACKENDS: dict[str, Callable[[np.ndarray, int, torch.device], Candidates]] = {
    "torch": screen_torch,
    "faiss": screen_faiss,
}


def as_tensor(feature: np.ndarray) -> Tensor:
    """Share the memory. Arrow's arrays are read-only, which torch warns of; nothing writes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(feature)


def float32_error(dim: int) -> float:
    """Largest error of a float32 product of unit rows (D,) in any order, as torch is set."""
    error = dim * 2.0**-23
    if torch.get_float32_matmul_precision() != "highest":  # both rows may be rounded to bfloat16
        error += 2 * LONGEST * BFLOAT16_ROUNDING
    return error


def _by_rows(feature: np.ndarray, keep: int, device: torch.device) -> Candidates:
    x_ND = as_tensor(feature).to(device)
    blocks = x_ND.split(max(1, BLOCK_VALUES // len(x_ND)))
    best = [torch.topk(block @ x_ND.T, keep) for block in blocks]
    value = torch.cat([part.values for part in best]).cpu().numpy()
    row = torch.cat([part.indices.int() for part in best]).cpu().numpy()
    return _in_order(value, row, feature.shape[1])


def _in_order(value: np.ndarray, row: np.ndarray, dim: int) -> Candidates:
    """The candidates of float32 values (N, C), largest first."""
    count, keep = value.shape
    return Candidates(
        value=value,
        row=row,
        fill=np.full(count, keep, np.int32),
        cut=value[:, -1].copy() if keep < count else np.full(count, -np.inf, np.float32),
        slack=np.full(count, float32_error(dim)),
        relative=0.0,
    )


def _by_tiles(feature: np.ndarray, keep: int) -> Candidates:
    """Each tile on or above the diagonal serves its rows and its columns."""
    count = len(feature)
    multiply, slack, relative = _multiplier(feature)
    found = Candidates(
        value=np.empty((count, 2 * keep), np.float32),  # when all places are taken, half stay
        row=np.empty((count, 2 * keep), np.int32),
        fill=np.zeros(count, np.int32),
        cut=np.full(count, -np.inf, np.float32),
        slack=slack,
        relative=relative,
    )
    values = np.empty(TILE * TILE, np.float32)
    starts = range(0, count, TILE)
    for shift in range(len(starts)):  # from the diagonal: files sorted by name lie near their kind
        for top, left in zip(starts, starts[shift:], strict=False):
            rows, columns = min(TILE, count - top), min(TILE, count - left)
            tile = values[: rows * columns].reshape(rows, columns)
            multiply(slice(top, top + rows), slice(left, left + columns), tile)
            over_rows(_offer_columns, rows, tile, top, left, found)
            if shift:
                over_rows(_offer_rows, columns, tile, top, left, found)
    return found


def _multiplier(
    feature: np.ndarray,
) -> tuple[Callable[[slice, slice, np.ndarray], object], np.ndarray, float]:
    """The fastest way of this CPU to a tile of products, with their slack (N,) and relative error.

    With x = r + e and r in bfloat16, |<x_i, x_j> - <r_i, r_j>| <= |e_i| |x_j| + |r_i| |e_j|, and
    the product is itself rounded to bfloat16.
    """
    count, dim = feature.shape
    if count <= TILE or not _has_bfloat16():
        slack = np.full(count, float32_error(dim))
        return lambda a, b, out: np.matmul(feature[a], feature[b].T, out=out), slack, 0.0
    rough = torch.empty((count, dim), dtype=torch.bfloat16)
    lost = torch.empty(count, dtype=torch.float64)
    for x, r, e in zip(
        as_tensor(feature).split(TILE), rough.split(TILE), lost.split(TILE), strict=True
    ):
        r.copy_(x)
        e.copy_((x - r).norm(dim=1))
    product = torch.empty(TILE * TILE, dtype=torch.bfloat16)

    def multiply(a: slice, b: slice, out: np.ndarray) -> None:
        rounded = product[: out.size].view(out.shape)
        torch.from_numpy(out).copy_(torch.mm(rough[a], rough[b].T, out=rounded))

    slack = LONGEST * lost + (LONGEST + lost) * lost.max() + float32_error(dim)
    return multiply, slack.numpy(), BFLOAT16_ROUNDING


def _has_bfloat16() -> bool:
    units = torch.cpu.get_capabilities()
    return bool(units.get("avx512_bf16") or units.get("amx_bf16"))


@njit(nogil=True, cache=True)
def _offer(value: float, row: int, other: int, found: Candidates) -> None:
    """Add a candidate. When that takes the last place, those above the middle value stay."""
    place = found.fill[row]
    found.value[row, place], found.row[row, place] = value, other
    found.fill[row] = place + 1
    places = found.value.shape[1]
    if place + 1 < places:
        return
    cut = kth_largest(found.value[row], places // 2 + 1)
    kept = 0
    for place in range(places):
        if found.value[row, place] > cut:
            found.value[row, kept] = found.value[row, place]
            found.row[row, kept] = found.row[row, place]
            kept += 1
    found.fill[row], found.cut[row] = kept, cut


@njit(nogil=True, cache=True)
def kth_largest(values: np.ndarray, k: int) -> float:
    """The ``k``-th largest of the values, by quickselect; k from 1."""
    values, low, high = values.copy(), 0, len(values) - 1
    while low < high:
        pivot, left, right = values[(low + high) // 2], low, high
        while left <= right:
            while values[left] > pivot:
                left += 1
            while values[right] < pivot:
                right -= 1
            if left <= right:
                values[left], values[right] = values[right], values[left]
                left, right = left + 1, right - 1
        low, high = (low, right) if k - 1 <= right else (left, high) if k - 1 >= left else (k, k)
    return values[k - 1]


@njit(nogil=True, cache=True)
def count_above(value: np.ndarray, cut: float) -> int:
    """How many values (C,) lie above ``cut``; written so that it compiles to vectors."""
    count = 0
    for c in range(len(value)):
        count += value[c] > cut
    return count


@njit(nogil=True, cache=True)
def _above_each(value: np.ndarray, cut: np.ndarray) -> int:
    """How many values (C,) lie above their own ``cut`` (C,)."""
    count = 0
    for c in range(len(value)):
        count += value[c] > cut[c]
    return count


@njit(nogil=True, cache=True)
def _offer_columns(
    start: int, stop: int, tile: np.ndarray, top: int, left: int, found: Candidates
) -> None:
    """Offer the columns of a tile to its rows ``start..stop``."""
    for r in range(start, stop):
        for begin in range(0, tile.shape[1], CHUNK):
            chunk = tile[r, begin : begin + CHUNK]
            if count_above(chunk, found.cut[top + r]):
                for c in range(len(chunk)):
                    if chunk[c] > found.cut[top + r]:
                        _offer(chunk[c], top + r, left + begin + c, found)


@njit(nogil=True, cache=True)
def _offer_rows(
    start: int, stop: int, tile: np.ndarray, top: int, left: int, found: Candidates
) -> None:
    """Offer the rows of a tile to its columns ``start..stop``."""
    for begin in range(start, stop, CHUNK):
        end = min(begin + CHUNK, stop)
        cut = found.cut[left + begin : left + end]
        for r in range(tile.shape[0]):
            chunk = tile[r, begin:end]
            if _above_each(chunk, cut):
                for c in range(len(chunk)):
                    if chunk[c] > cut[c]:
                        _offer(chunk[c], left + begin + c, top + r, found)
