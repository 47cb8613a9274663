"""Rank a gallery for every query, in blocks. Q queries, G gallery images, D feature size.

The gallery of a query is ordered by falling inner product; equal products keep the gallery's own
order. Two kinds of images are left out of it: junk (id -1) always, and those of the query's id that
the camera filter names. Distractors (id 0) stay and match nothing.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from reid_core.errors import UsageError
from reid_core.hardware import default_device
from reid_core.kernel import kernel
from reid_core.labelling.neighbours import check_unit_rows, insert
from reid_core.labelling.screens import as_tensor, count_above
from reid_core.tables import RANKS, feature_matrix
from reid_core.threads import over_rows

logger = logging.getLogger(__name__)

CameraFilter = Literal["same_camera", "same_tracklet", "none"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """The query or the gallery, in ``image_id`` order."""

    image_id: np.ndarray  # (n,) int64, increasing
    feature: np.ndarray  # (n, D) float32 unit rows
    pid: np.ndarray  # (n,) int64; -1 junk, 0 distractor or unknown
    camid: np.ndarray  # (n,) int64; -1 unknown, which equals nothing
    tracklet: np.ndarray  # (n,) int64; -1 unknown, which equals nothing

    def rows(self, begin: int, end: int) -> "Images":
        """The images from ``begin`` up to ``end``."""
        return Images(**{f.name: getattr(self, f.name)[begin:end] for f in fields(self)})

    @classmethod
    def from_table(cls, table: pa.Table) -> "Images":
        """Read the rows of a FEATURES table; unknown (null) ids become 0."""
        table = table.sort_by("image_id")
        pid, camid, tracklet = (
            table.column(name).fill_null(unknown).to_numpy().astype(np.int64)
            for name, unknown in (("pid", 0), ("camid", -1), ("tracklet", -1))
        )
        return cls(
            image_id=table.column("image_id").to_numpy(),
            feature=feature_matrix(table),
            pid=pid,
            camid=camid,
            tracklet=tracklet,
        )


class MatchRanks(NamedTuple):
    """At which ranks, from 1, the matches of every query stand: ``rank[begin[q]:begin[q + 1]]``."""

    begin: np.ndarray  # (Q + 1,) int64
    rank: np.ndarray  # (M,) int64, rising for each query; a query without a match has none

    @classmethod
    def joined(cls, parts: "Sequence[MatchRanks]") -> "MatchRanks":
        """Of the queries of all parts, in their order."""
        count = [np.zeros(1, np.int64), *(np.diff(part.begin) for part in parts)]
        rank = [np.zeros(0, np.int64), *(part.rank for part in parts)]
        return cls(np.cumsum(np.concatenate(count)), np.concatenate(rank))


class _Rules(NamedTuple):
    """What the compiled loops need to know of ids and cameras."""

    query_pid: np.ndarray  # (Q,) int64
    query_place: np.ndarray  # (Q,) int64, camera or tracklet; -1 equals nothing
    gallery_pid: np.ndarray  # (G,) int64
    gallery_place: np.ndarray  # (G,) int64
    by_pid: np.ndarray  # (G,) int64, the gallery ordered by id, then by row
    begin: np.ndarray  # (Q,) int64, where a query's id begins in by_pid
    end: np.ndarray  # (Q,) int64, and where it ends; at begin for a query without an id
    junk: np.ndarray  # int64, rows of the gallery


def match_ranks(
    query: Images,
    gallery: Images,
    *,
    camera_filter: CameraFilter = "same_camera",
    block: int = 256,
    device: str | torch.device | None = None,
) -> MatchRanks:
    """Find at which ranks the images of a query's id stand, without sorting.

    The rank of a match is 1 + the images with a larger product + those before it with an equal one.

    Args:
        query: Q images.
        gallery: G images.
        camera_filter: leave out images of the query's id and camera, or id and tracklet, or none.
        block: queries at a time.
        device: where to multiply; a CUDA device when there is one, else the CPU.

    Raises:
        UsageError: the filter is unknown.
        ValueError: feature sizes differ, or a row is not finite and of unit length.

    O(Q G D + M G) time for M matches in all; memory ``block`` x G float32.
    """
    rules = _rules(query, gallery, camera_filter)
    count, ranks = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)]
    for start, product in _products(query.feature, gallery.feature, block, device):
        parts = over_rows(_match_ranks, len(product), start, product, rules)
        count += [part[0] for part in parts]
        ranks += [part[1] for part in parts]
    return MatchRanks(np.cumsum(np.concatenate(count)), np.concatenate(ranks))


def top_k(
    query: Images,
    gallery: Images,
    k: int,
    *,
    camera_filter: CameraFilter = "same_camera",
    block: int = 256,
    device: str | torch.device | None = None,
) -> pa.Table:
    """The first ``k`` ranks (at least 1) of every query as a RANKS table, by query and rank.

    Arguments, order and errors are those of ``match_ranks``. A query has fewer than ``k`` rows if
    its gallery has. O(Q G D) time for small ``k``; memory ``block`` x G float32 and the table.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}; 10 is usual")
    rules = _rules(query, gallery, camera_filter)
    parts = [
        part
        for start, product in _products(query.feature, gallery.feature, block, device)
        for part in over_rows(_top_k, len(product), start, product, rules, k)
    ]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    q, rank, g, similarity = columns if parts else np.zeros((4, 0), np.int64)
    match = (query.pid[q] == gallery.pid[g]) & (query.pid[q] > 0)
    ids = query.image_id[q], gallery.image_id[g]
    values = [ids[0], rank.astype(np.int32), ids[1], similarity.astype(np.float32), match]
    return pa.table(values, schema=RANKS)


def _rules(query: Images, gallery: Images, camera_filter: str) -> _Rules:
    by_pid = np.argsort(gallery.pid, kind="stable")
    begin = np.searchsorted(gallery.pid, query.pid, "left", sorter=by_pid)
    end = np.searchsorted(gallery.pid, query.pid, "right", sorter=by_pid)
    return _Rules(
        query_pid=query.pid,
        query_place=_place(query, camera_filter),
        gallery_pid=gallery.pid,
        gallery_place=_place(gallery, camera_filter),
        by_pid=by_pid,
        begin=begin,
        end=np.where(query.pid > 0, end, begin),
        junk=np.flatnonzero(gallery.pid == -1),
    )


def _place(images: Images, camera_filter: str) -> np.ndarray:
    """What must not be equal in query and gallery, (n,) int64; -1 equals nothing."""
    known = {
        "same_camera": images.camid,
        "same_tracklet": images.tracklet,
        "none": np.full(len(images.pid), -1),
    }
    if camera_filter not in known:
        raise UsageError(f"no camera filter {camera_filter!r}; there are {', '.join(known)}")
    place = known[camera_filter]
    if camera_filter != "none" and len(place) and (place < 0).all():
        logger.warning("camera filter %s has no effect: none is known", camera_filter)
    return place


def _products(
    query: np.ndarray, gallery: np.ndarray, block: int, device: str | torch.device | None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the first query of each block and its products (b, G) float32, to be overwritten."""
    check_unit_rows(query)
    check_unit_rows(gallery)
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query features have {query.shape[1]} values and gallery features {gallery.shape[1]}; "
            "extract both with the same weights"
        )
    where = torch.device(device) if device else default_device()
    gallery_GD = as_tensor(gallery).to(where)
    product = np.empty((min(block, len(query)), len(gallery)), np.float32)
    for start in range(0, len(query), block):
        rows = query[start : start + block]
        if where.type == "cpu":  # by NumPy: torch's BLAS is slow on AMD
            yield start, np.matmul(rows, gallery.T, out=product[: len(rows)])
        else:
            yield start, (as_tensor(rows).to(where) @ gallery_GD.T).cpu().numpy()


@kernel()
def _leave_out(product: np.ndarray, q: int, rules: _Rules, match: np.ndarray) -> int:
    """Set what query ``q`` must not see to -inf; write the rows of its matches, return how many."""
    for g in rules.junk:
        product[g] = -np.inf
    found = 0
    for g in rules.by_pid[rules.begin[q] : rules.end[q]]:
        if rules.query_place[q] >= 0 and rules.query_place[q] == rules.gallery_place[g]:
            product[g] = -np.inf
        else:
            match[found] = g
            found += 1
    return found


@kernel()
def _not_below(product: np.ndarray, value: float) -> int:
    """How many products (g,) are at least ``value``."""
    count = 0
    for g in range(len(product)):
        count += product[g] >= value
    return count


@kernel()
def _match_ranks(
    start: int, stop: int, first: int, product: np.ndarray, rules: _Rules
) -> tuple[np.ndarray, np.ndarray]:
    """Number of matches and their ranks, of queries ``first + start .. first + stop``."""
    queries = slice(first + start, first + stop)
    most = (rules.end[queries] - rules.begin[queries]).sum()
    count, rank, used = np.zeros(stop - start, np.int64), np.empty(most, np.int64), 0
    match = np.empty(product.shape[1], np.int64)
    for q in range(start, stop):
        row = product[q]
        found = _leave_out(row, first + q, rules, match)
        for m, g in enumerate(match[:found]):
            rank[used + m] = 1 + _not_below(row[:g], row[g]) + count_above(row[g + 1 :], row[g])
        rank[used : used + found].sort()
        count[q - start] = found
        used += found
    return count, rank[:used]


@kernel()
def _top_k(
    start: int, stop: int, first: int, product: np.ndarray, rules: _Rules, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Query, rank, gallery row and product of the ``k`` best, of queries ``first + start ..``."""
    images = product.shape[1]
    k = min(k, images)
    size, used = (stop - start) * k, 0
    query, rank = np.empty(size, np.int64), np.empty(size, np.int64)
    row, value = np.empty(size, np.int64), np.empty(size, np.float32)
    match = np.empty(images, np.int64)
    for q in range(start, stop):
        _leave_out(product[q], first + q, rules, match)
        best, found = slice(used, used + k), 0
        for g in range(images):
            s = product[q, g]
            if s > -np.inf and (found < k or s > value[used + k - 1]):
                found = insert(g, s, found, row[best], value[best])
        for r in range(found):
            query[used + r], rank[used + r] = first + q, r + 1
        used += found
    return query[:used], rank[:used], row[:used], value[:used]
