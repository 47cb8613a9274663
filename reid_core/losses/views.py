"""Losses between two views of an image. b queries, Q rows of a queue, P projection size; unit rows."""

import torch
from torch import Tensor


def queue_nce(x_bP: Tensor, key_bP: Tensor, queue_QP: Tensor, temperature: float) -> Tensor:
    """Cross entropy of each query against its own key and the queue, (b,); gradient to the queries only.

    InfoNCE as in MoCo (He, Fan, Wu, Xie, Girshick, CVPR 2020) Eq. 1. Keys of the other images of the batch are
    no negatives before they lie in the queue.

    Args:
        x_bP: projected queries.
        key_bP: the key of another view of the same image.
        queue_QP: keys of earlier batches.
        temperature: softmax temperature, > 0; 0.07 is usual.
    """
    positive_b1 = (x_bP * key_bP.detach()).sum(dim=1, keepdim=True)
    logits_bK = torch.cat([positive_b1, x_bP @ queue_QP.T], dim=1) / temperature
    return logits_bK.logsumexp(dim=1) - logits_bK[:, 0]
