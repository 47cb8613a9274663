"""Which images share the identity of an image, told by the lists of its most similar images and of theirs.

Memory-based positive label prediction of Wang and Zhang: Unsupervised Person Re-identification via Multi-label
Classification (CVPR 2020), as its release does it (methods.md 5.2). b queries, N images, D feature size, P pairs.
"""

import torch
from torch import Tensor

from reid_core.hardware import has_bfloat16

CHUNK = 64
"""Candidates of a query that are judged at a time: most walks are short."""
HELD = 2**25
"""Similarities held at a time while candidates are judged."""
ERROR = 2**-6
"""By more than any product of unit rows in bfloat16 is off: three roundings of 2^-8 (rows, result), and sums."""
FEW = 64
"""Where more than one of so many products is unsure, it is faster to make all of them exactly."""


@torch.no_grad()
def predict_positives(
    similarity_bN: Tensor,
    row_b: Tensor,
    memory_ND: Tensor,
    *,
    threshold: float,
    min_window: int,
    max_positives: int = 0,
) -> Tensor:
    """The images that share a query's identity, (b, N) bool; always the query itself.

    Let n images be more similar than the threshold and k = max(n, min_window). Walk down the list of images sorted by
    similarity, as long as more similar ones than the query are at most k in each candidate's own list. After L
    candidates, the first min(max(2, L), n) images are positives; so those from the n-th on need not be judged.

    Args:
        similarity_bN: of the queries' memory rows to all.
        row_b: int64, the queries' own rows.
        memory_ND: unit rows, or zeros where an image was never seen.
        threshold: similarity that a positive exceeds.
        min_window: smallest k.
        max_positives: most positives, the query among them; 0 for no limit. It bounds time and memory where weak
            features put most similarities above the threshold.
    """
    above_b = (similarity_bN > threshold).sum(dim=1)
    limit_b = above_b.clamp(max=max_positives or len(memory_ND))
    order_bK = _most_similar(similarity_bN, int(limit_b.max()))
    walked_b = _walk(order_bK, limit_b, above_b.clamp(min=min_window), row_b, memory_ND)
    count_b = walked_b.clamp(min=2).minimum(limit_b)
    taken_bK = torch.arange(order_bK.shape[1], device=row_b.device) < count_b[:, None]
    positive_bN = torch.zeros_like(similarity_bN, dtype=torch.bool)
    positive_bN.scatter_(1, order_bK, taken_bK)
    return positive_bN.scatter_(1, row_b[:, None], True)


def _most_similar(similarity_bN: Tensor, count: int) -> Tensor:
    """The ``count`` most similar images in order, (b, count) int64; of equal ones the smaller row first."""
    near_bK = similarity_bN.topk(count, sorted=False).indices.sort(dim=1).values
    falling_bK = similarity_bN.gather(1, near_bK).sort(dim=1, descending=True, stable=True).indices
    return near_bK.gather(1, falling_bK)


def _walk(
    order_bK: Tensor, limit_b: Tensor, window_b: Tensor, row_b: Tensor, memory_ND: Tensor
) -> Tensor:
    """How many of the first ``limit_b`` candidates come before the first that fails, (b,) int64.

    Queries of at most two candidates get both whatever these say, and 0 here.
    """
    walked_b = torch.zeros_like(limit_b)
    for first in range(0, order_bK.shape[1], CHUNK):
        going = ((limit_b > max(first, 2)) & (walked_b == first)).nonzero()[:, 0]
        if not len(going):
            break
        candidate_gC = order_bK[going, first : first + CHUNK]
        place_C = torch.arange(first, first + candidate_gC.shape[1], device=row_b.device)
        judged_gC = place_C < limit_b[going, None]
        query_P = going[judged_gC.nonzero()[:, 0]]
        rank_P = _ranks(candidate_gC[judged_gC], row_b[query_P], memory_ND)
        passed_gC = torch.zeros_like(judged_gC)
        passed_gC[judged_gC] = rank_P <= window_b[query_P]
        walked_b[going] += passed_gC.long().cumprod(dim=1).sum(dim=1)
    return walked_b


def _ranks(candidate_P: Tensor, row_P: Tensor, memory_ND: Tensor) -> Tensor:
    """How many images are more similar to each candidate than the image ``row_P`` is, (P,) int32."""
    rank_P = torch.empty_like(candidate_P, dtype=torch.int32)  # sums are faster than in int64
    coarse_ND = memory_ND.bfloat16() if has_bfloat16(memory_ND.device) else None
    # Sorted, so that a candidate of many queries is compared with the memory once.
    for pair in candidate_P.argsort().split(max(1, HELD // len(memory_ND))):
        block = candidate_P[pair], row_P[pair], memory_ND
        found_p = None if coarse_ND is None else _screened_ranks(*block, coarse_ND)
        rank_P[pair] = _exact_ranks(*block) if found_p is None else found_p
    return rank_P


def _exact_ranks(candidate_p: Tensor, row_p: Tensor, memory_ND: Tensor) -> Tensor:
    similarity_pN = _similarities(candidate_p, memory_ND)
    above_pN = similarity_pN > similarity_pN.gather(1, row_p[:, None])
    return above_pN.sum(dim=1, dtype=torch.int32)


def _screened_ranks(
    candidate_p: Tensor, row_p: Tensor, memory_ND: Tensor, coarse_ND: Tensor
) -> Tensor | None:
    """The same by products in bfloat16, of which the unsure ones are made again; None where these are many."""
    similarity_pN = _similarities(candidate_p, coarse_ND)
    limit_p = _products(candidate_p, row_p, memory_ND)
    above_pN = similarity_pN > (limit_p + ERROR)[:, None]
    unsure_pN = (similarity_pN >= (limit_p - ERROR)[:, None]) & ~above_pN
    if FEW * unsure_pN.sum(dtype=torch.int32) > unsure_pN.numel():
        return None
    place_U, image_U = unsure_pN.nonzero().unbind(1)
    more_U = _products(candidate_p[place_U], image_U, memory_ND) > limit_p[place_U]
    return above_pN.sum(dim=1, dtype=torch.int32).index_add_(0, place_U, more_U.int())


def _similarities(candidate_p: Tensor, row_ND: Tensor) -> Tensor:
    """Of each candidate to all images, (p, N)."""
    candidate, which_p = candidate_p.unique(return_inverse=True)
    return (row_ND[candidate] @ row_ND.T)[which_p]


def _products(one_U: Tensor, two_U: Tensor, row_ND: Tensor) -> Tensor:
    """Of pairs of rows, (U,)."""
    size = max(1, HELD // row_ND.shape[1])
    parts = zip(one_U.split(size), two_U.split(size), strict=True)
    return torch.cat([(row_ND[one] * row_ND[two]).sum(dim=1) for one, two in parts])
