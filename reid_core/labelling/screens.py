"""Candidates for the nearest neighbours of every row, by block products whose error is known.

N and M images, D feature size, C candidates a row. Every screen takes two sets of rows, or one set
twice (the same array). On a CPU one product serves both sets, so of a set with itself only the tiles
on and above the diagonal are multiplied; in bfloat16 if the CPU has units for it. A GPU multiplies
rows by all rows in float32, once for each set.
"""

import logging
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reid_core.errors import UsageError
from reid_core.hardware import has_bfloat16
from reid_core.kernel import kernel
from reid_core.threads import over_rows

logger = logging.getLogger(__name__)

TILE = 2048  # rows and columns of one product on a CPU
CHUNK = 128  # values that are compared at once
BLOCK_VALUES = 2**26  # of one (rows, N) block on a GPU: 256 MiB
ALIKE = 0.5  # mean product of all pairs of rows above which they are centred before rounding
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


Both = tuple[Candidates, Candidates]


def screen_torch(one: np.ndarray, two: np.ndarray, keep: int, device: torch.device) -> Both:
    """``keep`` candidates or more of every row (fewer when many values are equal), by torch.

    Args:
        one: (N, D) float32.
        two: (M, D) float32, or the same array.
        keep: candidates a row; all where there are fewer.
        device: where to multiply.

    Returns:
        Candidates of ``one`` in ``two``, and those of ``two`` in ``one``: the same for one array.
    """
    if device.type == "cpu":
        return _by_tiles(one, two, keep)
    found = _by_rows(one, two, keep, device)
    return found, found if one is two else _by_rows(two, one, keep, device)


def screen_faiss(one: np.ndarray, two: np.ndarray, keep: int, device: torch.device) -> Both:
    """``keep`` candidates by brute force; on the GPU if ``device`` is one and faiss knows it.

    Raises:
        UsageError: faiss is not installed.
    """
    faiss = import_faiss("choose the k-NN backend 'torch'")
    search = faiss.knn
    if device.type == "cuda" and faiss.get_num_gpus():
        search = partial(faiss.knn_gpu, faiss.StandardGpuResources())
    elif device.type == "cuda":
        logger.warning("this faiss knows no GPU and searches on the CPU; faiss-gpu or torch would")

    def found(query: np.ndarray, images: np.ndarray) -> Candidates:
        few = min(keep, len(images))
        value, row = search(query, images, few, metric=faiss.METRIC_INNER_PRODUCT)
        return _in_order(value, row.astype(np.int32), images)

    first = found(one, two)
    return first, first if one is two else found(two, one)


BACKENDS: dict[str, Callable[[np.ndarray, np.ndarray, int, torch.device], Both]] = {
    "torch": screen_torch,
    "faiss": screen_faiss,
}


def import_faiss(otherwise: str) -> Any:
    """The module faiss, which is an extra.

    Raises:
        UsageError: it is not installed; says what to do ``otherwise``.
    """
    try:
        import faiss
    except ImportError as error:
        raise UsageError(
            f"faiss is not installed: pip install '.[cpu]' or '.[gpu]' in the checkout, or {otherwise}"
        ) from error
    return faiss


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


def _by_rows(query: np.ndarray, images: np.ndarray, keep: int, device: torch.device) -> Candidates:
    few = min(keep, len(images))
    x_MD = as_tensor(images).to(device)
    blocks = as_tensor(query).split(max(1, BLOCK_VALUES // len(images)))
    best = [torch.topk(block.to(device) @ x_MD.T, few) for block in blocks]
    value = torch.cat([part.values for part in best]).cpu().numpy()
    row = torch.cat([part.indices.int() for part in best]).cpu().numpy()
    return _in_order(value, row, images)


def _in_order(value: np.ndarray, row: np.ndarray, images: np.ndarray) -> Candidates:
    """The candidates of float32 values (N, C), largest first, among ``images`` (M, D)."""
    count, keep = value.shape
    return Candidates(
        value=value,
        row=row,
        fill=np.full(count, keep, np.int32),
        cut=value[:, -1].copy() if keep < len(images) else np.full(count, -np.inf, np.float32),
        slack=np.full(count, float32_error(images.shape[1])),
        relative=0.0,
    )


def _by_tiles(one: np.ndarray, two: np.ndarray, keep: int) -> Both:
    """Each tile serves its rows and its columns; of one array those above the diagonal suffice."""
    multiply, slacks, relative = _multiplier(one, two)
    first = _nothing_found(len(one), min(keep, len(two)), slacks[0], relative)
    second = first
    if one is not two:
        second = _nothing_found(len(two), min(keep, len(one)), slacks[1], relative)
    values = np.empty(TILE * TILE, np.float32)
    tops, lefts = range(0, len(one), TILE), range(0, len(two), TILE)
    tiles = [(top, left) for top in tops for left in lefts if one is not two or left >= top]
    if one is two:  # from the diagonal: files sorted by name lie near their kind
        tiles.sort(key=lambda tile: tile[1] - tile[0])
    for top, left in tiles:
        rows, columns = min(TILE, len(one) - top), min(TILE, len(two) - left)
        tile = values[: rows * columns].reshape(rows, columns)
        multiply(slice(top, top + rows), slice(left, left + columns), tile)
        over_rows(_offer_columns, rows, tile, top, left, first)
        if one is not two or left > top:
            over_rows(_offer_rows, columns, tile, top, left, second)
    return first, second


def _nothing_found(count: int, keep: int, slack: np.ndarray, relative: float) -> Candidates:
    return Candidates(
        value=np.empty((count, 2 * keep), np.float32),  # when all places are taken, half stay
        row=np.empty((count, 2 * keep), np.int32),
        fill=np.zeros(count, np.int32),
        cut=np.full(count, -np.inf, np.float32),
        slack=slack,
        relative=relative,
    )


def _multiplier(
    one: np.ndarray, two: np.ndarray
) -> tuple[Callable[[slice, slice, np.ndarray], object], tuple[np.ndarray, np.ndarray], float]:
    """The fastest way of this CPU to a tile of products; slacks (N,) and (M,), relative error.

    With x - m = r + e and r in bfloat16, |<x_i - m, x_j - m> - <r_i, r_j>| <= |e_i| |x_j - m| +
    |r_i| |e_j|, and <r_i, r_j> is itself rounded to bfloat16. The centre m is 0 unless the rows are
    much alike, as those of an untrained network are: their products then differ by less than
    bfloat16 can tell, unless what all have in common is taken out first.
    """
    error = float32_error(one.shape[1])
    if max(len(one), len(two)) <= TILE or not has_bfloat16():
        slacks = np.full(len(one), error), np.full(len(two), error)
        return lambda a, b, out: np.matmul(one[a], two[b].T, out=out), slacks, 0.0
    mean = one.mean(axis=0) if one is two else (one.mean(axis=0) + two.mean(axis=0)) / 2
    alike = float(mean @ mean) > ALIKE
    centre = torch.from_numpy(mean) if alike else None
    first = _rounded(one, centre)
    second = first if one is two else _rounded(two, centre)
    product = torch.empty(TILE * TILE, dtype=torch.bfloat16)

    def multiply(a: slice, b: slice, out: np.ndarray) -> None:
        rounded = product[: out.size].view(out.shape)
        tile = torch.from_numpy(out)
        tile.copy_(torch.mm(first.rough[a], second.rough[b].T, out=rounded))
        if alike:
            tile += first.shift[a, None]
            tile += second.shift[b]

    def slack(own: _Rounded, other: _Rounded) -> np.ndarray:
        longest, most = other.length.max(), other.lost.max()
        off = own.lost * longest + (own.length + own.lost) * most + error * own.length * longest
        rounding = BFLOAT16_ROUNDING * (own.length + own.lost) * (longest + most)
        return off + alike * (rounding + 2.0**-21)

    slacks = slack(first, second), slack(second, first)
    return multiply, slacks, 0.0 if alike else BFLOAT16_ROUNDING


class _Rounded(NamedTuple):
    """Rows x (N, D) less a centre m, in bfloat16."""

    rough: Tensor  # (N, D) bfloat16
    lost: np.ndarray  # (N,) length of what the rounding took
    length: np.ndarray  # (N,) of x - m
    shift: (
        Tensor  # (N,) float32, <x, m> - |m|^2 / 2: those of two rows and their product make <x, y>
    )


def _rounded(feature: np.ndarray, m: Tensor | None) -> _Rounded:
    rough = torch.empty(feature.shape, dtype=torch.bfloat16)
    lost, length, shift = torch.zeros(3, len(feature), dtype=torch.float64)
    for x, r, e, size, s in zip(
        *(t.split(TILE) for t in (as_tensor(feature), rough, lost, length, shift)), strict=True
    ):
        rest = x if m is None else x - m
        r.copy_(rest)
        e.copy_((rest - r).norm(dim=1))
        size.copy_(rest.norm(dim=1))
        if m is not None:
            s.copy_(x.double() @ m.double() - m.double().square().sum() / 2)
    return _Rounded(rough, lost.numpy(), length.numpy(), shift.float())


@kernel()
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


@kernel()
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


@kernel()
def count_above(value: np.ndarray, cut: float) -> int:
    """How many values (C,) lie above ``cut``; written so that it compiles to vectors."""
    count = 0
    for c in range(len(value)):
        count += value[c] > cut
    return count


@kernel()
def _above_each(value: np.ndarray, cut: np.ndarray) -> int:
    """How many values (C,) lie above their own ``cut`` (C,)."""
    count = 0
    for c in range(len(value)):
        count += value[c] > cut[c]
    return count


@kernel()
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


@kernel()
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
