"""Which class each row of an instance memory belongs to. S source classes, N target images."""

import torch
from torch import Tensor


def own_class_for_outliers(label_N: Tensor, classes: int) -> Tensor:
    """Classes of all memory rows (S + N,): source 0..S-1, clusters S.., then each outlier its own.

    Args:
        label_N: int64 cluster of each target image, -1 outlier.
        classes: S.
    """
    outlier_N = label_N < 0
    clusters = int(label_N.max()) + 1
    own_N = classes + clusters + outlier_N.cumsum(0) - 1
    source = torch.arange(classes, device=label_N.device)
    return torch.cat([source, torch.where(outlier_N, own_N, classes + label_N)])
