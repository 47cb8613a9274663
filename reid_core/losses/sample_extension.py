"""Implicit sample extension (Zhang et al., CVPR 2022): support samples and the label-preserving loss.

b queries, C clusters, K support samples a query, S candidates of the global batch, M classes among them, D feature
size; unit rows. Equations as read in methods.md 6.2.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

DEGREES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda progress: progress,
    "square": lambda progress: progress**2,
    "log": lambda progress: math.log((math.e - 1) * progress + 1),
}
"""How the degree of extension grows over the run, from its start (0) to its end (1)."""


def extension_degree(kind: str, lam0: float, progress: float) -> float:
    """Lambda of Eq. 5, at most ``lam0 / 2``; ``kind`` is one of ``DEGREES``."""
    return lam0 / 2 * DEGREES[kind](progress)


def best_other_classes(score_bC: Tensor, label_b: Tensor, count: int) -> Tensor:
    """The ``count`` classes of largest score without the own one, (b, K) int64; K = C - 1 where that is fewer.

    Args:
        score_bC: similarity to each cluster for the direction nearest, its negative for farthest, uniform
            draws for random.
        label_b: int64 in [0, C), the cluster of each query.
        count: clusters to choose.
    """
    others_bC = score_bC.scatter(1, label_b[:, None], -math.inf)
    return others_bC.topk(min(count, score_bC.shape[1] - 1)).indices


def support_samples(
    x_bD: Tensor, label_b: Tensor, toward_bK: Tensor, memory_CD: Tensor, degree: float
) -> Tensor:
    """Each query moved from its own centroid towards others (Eq. 3 and 4), (b, K, D) unit rows.

    norm(x + degree (M_toward - M_own) / 2), with gradient to the queries only; the paper omits the norm.

    Args:
        x_bD: unit queries.
        label_b: int64 in [0, C), the cluster of each query.
        toward_bK: int64 in [0, C), the clusters it is moved towards.
        memory_CD: unit centroids.
        degree: lambda of ``extension_degree``.
    """
    memory_CD = memory_CD.detach()
    gap_bKD = memory_CD[toward_bK] - memory_CD[label_b, None]
    return F.normalize(x_bD[:, None] + degree / 2 * gap_bKD, dim=2)


def label_preserving(
    x_bD: Tensor, label_b: Tensor, candidate_SD: Tensor, label_S: Tensor, temperature: float
) -> Tensor:
    """Cross entropy of the least similar candidate of the own class against the most similar of each other, (b,).

    L_LP (Eq. 7) with the positive in the denominator, as the release has it. The order of the candidates does
    not matter; gradient to queries and candidates.

    Args:
        x_bD: unit queries.
        label_b: int64 class of each query; each must occur in ``label_S``.
        candidate_SD: unit support samples, or the images themselves, of the global batch.
        label_S: int64 class of each candidate.
        temperature: softmax temperature, > 0; 0.6 is usual.
    """
    present_M, class_S = label_S.unique(return_inverse=True)
    class_b = torch.searchsorted(present_M, label_b)
    logits_bS = x_bD @ candidate_SD.T / temperature
    hardest_bM = logits_bS.new_zeros(len(x_bD), len(present_M)).scatter_reduce(
        1, class_S.expand_as(logits_bS), logits_bS, "amax", include_self=False
    )
    positive_b = logits_bS.masked_fill(label_b[:, None] != label_S, math.inf).amin(dim=1)
    logits_bM = hardest_bM.scatter(1, class_b[:, None], positive_b[:, None])
    return F.cross_entropy(logits_bM, class_b, reduction="none")
