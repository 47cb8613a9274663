"""The Market-1501 protocol, one query at a time, by sorting."""

import numpy as np

from reid_core.evaluation.ranking import Images


def ranking(query: Images, q: int, gallery: Images, camera_filter: str) -> np.ndarray:
    """Rows of the gallery as query ``q`` sees them, best first; ties in the gallery's order."""
    place = {"same_camera": "camid", "same_tracklet": "tracklet"}.get(camera_filter)
    order = np.argsort(-(gallery.feature @ query.feature[q]), kind="stable")
    keep = gallery.pid[order] != -1
    known = query.pid[q] > 0 and place is not None and getattr(query, place)[q] != -1
    if known:
        same = getattr(gallery, place)[order] == getattr(query, place)[q]
        keep &= ~(same & (gallery.pid[order] == query.pid[q]))
    return order[keep]


def match_ranks(query: Images, gallery: Images, camera_filter: str) -> list[np.ndarray]:
    """Ranks, from 1, of the matches of each query."""
    ranks = []
    for q in range(len(query.pid)):
        seen = gallery.pid[ranking(query, q, gallery, camera_filter)]
        ranks.append(np.flatnonzero((seen == query.pid[q]) & (query.pid[q] > 0)) + 1)
    return ranks


def accuracies(ranks: list[np.ndarray]) -> dict[str, float]:
    """Means over the queries that have a match."""
    kept = [rank for rank in ranks if len(rank)]
    return {
        "mAP": np.mean([np.mean((np.arange(len(r)) + 1) / r) for r in kept]),
        "mINP": np.mean([len(r) / r[-1] for r in kept]),
        "rank1": np.mean([r[0] <= 1 for r in kept]),
        "rank5": np.mean([r[0] <= 5 for r in kept]),
        "rank10": np.mean([r[0] <= 10 for r in kept]),
    }
