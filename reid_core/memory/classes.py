"""Classes of memory rows: one centroid a class, or one row an image.

S source classes, C clusters, N target images, D feature size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from reid_core.batch import Round
from reid_core.memory.updates import class_means


def centroids(feature_ND: Tensor, label_N: Tensor, count: int) -> Tensor:
    """Unit means of the rows of each class 0..count-1, (count, D); label -1 is left out."""
    return F.normalize(class_means(feature_ND, label_N, count), dim=1)


def round_centroids(start: Round) -> Tensor:
    """Centroids of this round's extracted features: of the source classes, if any, then of the clusters, (S + C, D)."""
    domains = [start.source, start.target] if start.source else [start.target]
    labelled = [(domain.extracted, domain.label[:, 0]) for domain in domains]
    return torch.cat(
        [centroids(x_ND, label_N, int(label_N.max()) + 1) for x_ND, label_N in labelled]
    )


def own_class_for_outliers(label_N: Tensor, classes: int) -> Tensor:
    """Classes of all rows of an instance memory (S + N,): source 0..S-1, clusters S.., then each outlier its own.

    Args:
        label_N: int64 cluster of each target image, -1 outlier.
        classes: S.
    """
    outlier_N = label_N < 0
    clusters = int(label_N.max()) + 1
    own_N = classes + clusters + outlier_N.cumsum(0) - 1
    source = torch.arange(classes, device=label_N.device)
    return torch.cat([source, torch.where(outlier_N, own_N, classes + label_N)])


def check_contrast(classes: int) -> None:
    """Refuse fewer than two classes, of which none can be told from another.

    Raises:
        ValueError: says what to change.
    """
    if classes < 2:
        raise ValueError(
            f"{classes} clusters: nothing to contrast; change --method.eps (0.4 to 0.7 is usual) or "
            "--method.min-samples"
        )
