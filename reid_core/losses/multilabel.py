"""Losses of queries whose label is a set of images: memory rows are classes, and several of them are right.

b queries, N memory rows. A query's similarity to a row is to be 1 where the row is a positive, -1 elsewhere.
"""

import torch
from torch import Tensor


def mmcl(
    similarity_bN: Tensor, positive_bN: Tensor, *, positive_weight: float, hard_share: float
) -> Tensor:
    """Memory-based multi-label classification loss, (b,).

    Wang and Zhang: Unsupervised Person Re-identification via Multi-label Classification (CVPR 2020), Eq. 8, with the
    hard negatives of its release: weight * mean over positives of (1 - s)^2 + mean over the hardest share of the
    negatives, at least one, of (1 + s)^2.

    Args:
        similarity_bN: of each query to each row; carries the gradient.
        positive_bN: bool, at least one in a row.
        positive_weight: delta, 5 is usual.
        hard_share: r, the share of the negatives that counts, in (0, 1]; 0.01 is usual.
    """
    near_b = _mean((1 - similarity_bN).square(), positive_bN)
    negatives_b = positive_bN.logical_not().sum(dim=1)
    count_b = (hard_share * negatives_b.double()).long().clamp(min=1).minimum(negatives_b)
    others_bN = similarity_bN.masked_fill(positive_bN, -torch.inf)
    hardest_bH = others_bN.topk(int(count_b.max()), dim=1).values
    counts_bH = torch.arange(hardest_bH.shape[1], device=count_b.device) < count_b[:, None]
    far_b = _mean((1 + hardest_bH.masked_fill(~counts_bH, -1)).square(), counts_bH)
    return positive_weight * near_b + far_b


def plain_pm1(similarity_bN: Tensor, positive_bN: Tensor) -> Tensor:
    """Squared distance to the targets 1 and -1, (b,): SNNet's Eq. 2 as printed, but with -1 for 0.

    Args:
        similarity_bN: of each query to each row; carries the gradient.
        positive_bN: bool.
    """
    target_bN = 2 * positive_bN.to(similarity_bN) - 1
    return (similarity_bN - target_bN).square().sum(dim=1)


def _mean(x_bK: Tensor, counts_bK: Tensor) -> Tensor:
    """The mean over the entries that count, (b,); 0 where none does."""
    return (x_bK * counts_bK).sum(dim=1) / counts_bK.sum(dim=1).clamp(min=1)
