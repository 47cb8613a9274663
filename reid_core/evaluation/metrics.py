"""Accuracies of a ranking, as published for Market-1501: mAP, mINP and CMC, fractions of 1."""

from dataclasses import dataclass

import numpy as np
import torch

from reid_core.evaluation.ranking import CameraFilter, Images, MatchRanks, match_ranks
from reid_core.labelling.tasks import Tasks

QUERIES = 4096  # a task: all of Market-1501's, a third of MSMT17's


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Means over the queries that have a match; None if there is no such query, as without ids."""

    mAP: float | None
    mINP: float | None
    rank1: float | None
    rank5: float | None
    rank10: float | None
    queries: int  # with a match
    dropped: int  # without one
    average_precision: np.ndarray  # (Q,) float64; NaN for dropped queries

    def accuracies(self) -> dict[str, float | None]:
        """The five figures by name, as result.json has them."""
        names = ("mAP", "mINP", "rank1", "rank5", "rank10")
        return {name: getattr(self, name) for name in names}


def evaluate(
    query: Images,
    gallery: Images,
    *,
    camera_filter: CameraFilter = "same_camera",
    block: int = 256,
    device: str | torch.device | None = None,
) -> Evaluation:
    """Rank and score; arguments, ties, errors, time and memory are those of ``match_ranks``."""
    return score(
        match_ranks(query, gallery, camera_filter=camera_filter, block=block, device=device)
    )


def evaluate_in_tasks(
    query: Images, gallery: Images, tasks: Tasks, *, camera_filter: CameraFilter = "same_camera"
) -> Evaluation:
    """``evaluate`` with a task for every ``QUERIES`` queries; no more than those are ranked here."""
    if len(query.pid) <= QUERIES:
        return evaluate(query, gallery, camera_filter=camera_filter)
    whole, starts = tasks.put(gallery), range(0, len(query.pid), QUERIES)
    parts = [tasks.submit(_ranks, query.rows(a, a + QUERIES), whole, camera_filter) for a in starts]
    tasks.wait(parts, "rank the gallery")
    return score(MatchRanks.joined(tasks.get(parts)))


def _ranks(query: Images, gallery: Images, camera_filter: CameraFilter) -> MatchRanks:
    return match_ranks(query, gallery, camera_filter=camera_filter)


def score(ranks: MatchRanks) -> Evaluation:
    """The accuracies of Q queries from the ranks r_1 < ... < r_m of their matches.

    Average precision is the mean of i / r_i, CMC at k asks whether r_1 <= k, and INP is m / r_m (Ye
    et al., TPAMI 2022).
    """
    count = np.diff(ranks.begin)
    kept = np.flatnonzero(count)
    begin, end = ranks.begin[:-1][kept], ranks.begin[1:][kept]
    precision = (np.arange(len(ranks.rank)) - np.repeat(begin, count[kept]) + 1) / ranks.rank
    average = np.full(len(count), np.nan)
    if len(kept):
        average[kept] = np.add.reduceat(precision, begin) / count[kept]
    first, last = ranks.rank[begin], ranks.rank[end - 1]
    return Evaluation(
        mAP=_mean(average[kept]),
        mINP=_mean(count[kept] / last),
        rank1=_mean(first <= 1),
        rank5=_mean(first <= 5),
        rank10=_mean(first <= 10),
        queries=len(kept),
        dropped=len(count) - len(kept),
        average_precision=average,
    )


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
