"""Contrastive losses against a memory. b queries, R memory rows, C classes, D feature size; unit rows."""

import torch.nn.functional as F
from torch import Tensor


def memory_nce(x_bD: Tensor, class_b: Tensor, prototype_CD: Tensor, temperature: float) -> Tensor:
    """Cross entropy of each query against every prototype, (b,); gradient to the queries only.

    ClusterContrast (arXiv 2103.11568) Eq. 1 with unit centroids; the hybrid memory of SpCL (NeurIPS 2020,
    Eq. 1) with un-normalised means of memory rows, since the mean of similarities is the similarity to the mean.

    Args:
        x_bD: unit queries.
        class_b: int64 in [0, C), the class of each query.
        prototype_CD: one row a class.
        temperature: softmax temperature, > 0; 0.05 is usual.
    """
    logits_bC = x_bD @ prototype_CD.detach().T / temperature
    return F.cross_entropy(logits_bC, class_b, reduction="none")
