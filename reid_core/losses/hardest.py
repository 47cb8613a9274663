"""Contrast by the least similar positive and the most similar negatives (HDCPD Eq. 1 and 2, methods.md 4.3).

b queries of this rank, B of all ranks, R memory rows, K classes, D feature size; unit rows. Equally hard examples
share the gradient, so the order of rows and images does not matter.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from reid_core.distributed import gather_rows, gather_with_grad

Negatives = Literal["all", "hardest_per_identity"]


def hardest_nce(
    x_bD: Tensor,
    class_b: Tensor,
    row_RD: Tensor,
    class_R: Tensor,
    classes: int,
    temperature: float,
) -> Tensor:
    """Cross entropy of the hardest row of the own class against that of every other class, (b,).

    L_G of HDCPD (Eq. 1): the least similar row stands for the own class, the most similar one for each
    other. A class of one row is that row: an outlier is contrasted with its own. Gradient to the
    queries only.

    Args:
        x_bD: unit queries.
        class_b: int64 in [0, K), the class of each query.
        row_RD: unit memory rows.
        class_R: int64 in [0, K), the class of each row; every class has a row.
        classes: K.
        temperature: softmax temperature, > 0; 0.05 is usual.
    """
    similarity_bR = x_bD @ row_RD.detach().T
    other_bR = class_b[:, None] != class_R
    positive_b = similarity_bR.masked_fill(other_bR, math.inf).amin(dim=1)
    hardest_bK = _class_maxima(similarity_bR, class_R, classes)
    logits_bK = hardest_bK.scatter(1, class_b[:, None], positive_b[:, None]) / temperature
    return F.cross_entropy(logits_bK, class_b, reduction="none")


def batch_nce(
    x_bD: Tensor,
    class_b: Tensor,
    image_b: Tensor,
    temperature: float,
    negatives: Negatives = "all",
) -> tuple[Tensor, Tensor]:
    """Cross entropy of the hardest positive of the global batch against the negatives; (b,), (b,) bool: who has one.

    L_B of HDCPD (Eq. 2). A positive is another image of the same class; a query without one (an outlier)
    has no loss and is to be left out of the mean. Gradient to queries and keys, across ranks.

    Args:
        x_bD: unit queries.
        class_b: int64 class of each query, an outlier's its own.
        image_b: int64 image of each query: an image drawn twice is not its own positive.
        temperature: softmax temperature, > 0; 0.6 is usual.
        negatives: every image of another class, or the most similar one of each other class.
    """
    x_BD, class_B, image_B = gather_with_grad(x_bD), gather_rows(class_b), gather_rows(image_b)
    same_bB = class_b[:, None] == class_B
    positive_bB = same_bB & (image_b[:, None] != image_B)
    paired_b = positive_bB.any(dim=1)
    similarity_bB = x_bD @ x_BD.T
    hardest_b = similarity_bB.masked_fill(~positive_bB, math.inf).amin(dim=1)
    hardest_b = hardest_b.masked_fill(~paired_b, 0)
    negative_bB = similarity_bB.masked_fill(same_bB, -math.inf)
    if negatives == "hardest_per_identity":
        present, identity_B = class_B.unique(return_inverse=True)
        negative_bB = _class_maxima(negative_bB, identity_B, len(present))
    logits = torch.cat([hardest_b[:, None], negative_bB], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros_like(class_b), reduction="none"), paired_b


def _class_maxima(similarity_bR: Tensor, class_R: Tensor, classes: int) -> Tensor:
    """The largest similarity to a row of each class, (b, K)."""
    maxima_bK = similarity_bR.new_zeros(len(similarity_bR), classes)
    index_bR = class_R.expand_as(similarity_bR)
    return maxima_bK.scatter_reduce(1, index_bR, similarity_bR, "amax", include_self=False)
