"""ODC's two memories: a feature and a cluster of every image, a centroid of every cluster; each batch changes them.

Zhan, Xie, Liu, Ong, Loy: Online Deep Clustering for Unsupervised Representation Learning (CVPR 2020). N images,
C clusters, B images of a batch, n members of a cluster, D feature size. Nothing has a gradient.
"""

import torch
from torch import Tensor, nn

from reid_core.memory.updates import class_means, update_in_order

HALVING_ROUNDS = 20  # of assignment and mean, as many as in the release


def nearest(x_BD: Tensor, centroid_CD: Tensor, allowed_C: Tensor | None = None) -> Tensor:
    """The centroid at the smallest Euclidean distance from each row, (B,) int64.

    Args:
        x_BD: any rows.
        centroid_CD: means, not of unit length.
        allowed_C: bool, the centroids to choose from, at least one; all when None.
    """
    score_BC = x_BD @ centroid_CD.T - centroid_CD.square().sum(dim=1) / 2
    if allowed_C is not None:
        score_BC.masked_fill_(~allowed_C, -torch.inf)
    return score_BC.argmax(dim=1)


def smaller_half(x_nD: Tensor) -> Tensor:
    """The smaller part of 2-means, (n,) bool; with equal parts, either of them.

    The first centres are the row farthest from the mean and the row farthest from that one. Equal rows, which
    have no two parts, are cut in the middle of their order.

    Args:
        x_nD: at least two rows.
    """
    first = _farthest(x_nD, x_nD.mean(dim=0))
    centre_2D = torch.stack([first, _farthest(x_nD, first)])
    part_n = nearest(x_nD, centre_2D)
    for _ in range(HALVING_ROUNDS):
        part_n = nearest(x_nD, class_means(x_nD, part_n, 2))
    count = len(part_n)
    if part_n.min() == part_n.max():
        part_n = (torch.arange(count, device=x_nD.device) >= (count + 1) // 2).long()
    return part_n == int(2 * part_n.sum() <= count)


def _farthest(x_nD: Tensor, from_D: Tensor) -> Tensor:
    return x_nD[(x_nD - from_D).square().sum(dim=1).argmax()]


class OnlineClusters(nn.Module):
    """Samples memory and centroids memory.

    Args:
        images: N, at least C times ``min_size``.
        clusters: C, at least 2; their number stays, none is ever empty.
        dim: D.
        momentum: weight of the old feature of an image.
        min_size: images below which a cluster is dissolved, at least 2.
    """

    feature_ND: Tensor  # unit rows
    label_N: Tensor  # int64 in [0, C)
    centroid_CD: Tensor  # means of the members' features when they were last taken
    filled: Tensor

    def __init__(
        self, images: int, clusters: int, dim: int, *, momentum: float, min_size: int
    ) -> None:
        super().__init__()
        self.momentum, self.min_size = momentum, min_size
        self.register_buffer("feature_ND", torch.zeros(images, dim))
        self.register_buffer("label_N", torch.zeros(images, dtype=torch.int64))
        self.register_buffer("centroid_CD", torch.zeros(clusters, dim))
        self.register_buffer("filled", torch.tensor(False))

    def sizes(self) -> Tensor:
        """Images of each cluster, (C,) int64."""
        return self.label_N.bincount(minlength=len(self.centroid_CD))

    @torch.no_grad()
    def fill(self, x_ND: Tensor, label_N: Tensor) -> None:
        """Start from a clustering; none is empty then.

        Args:
            x_ND: unit features.
            label_N: int64, contiguous from 0, at most C numbers and at least one; an image with -1 goes to the
                nearest mean.
        """
        mean_KD = class_means(x_ND, label_N, int(label_N.max()) + 1)
        outlier_N = label_N < 0
        self.feature_ND.copy_(x_ND)
        self.label_N.copy_(label_N)
        self.label_N[outlier_N] = nearest(x_ND[outlier_N], mean_KD)
        self.refresh()
        self.balance()
        self.filled.fill_(True)

    @torch.no_grad()
    def move(self, row_B: Tensor, x_BD: Tensor) -> Tensor:
        """Move the features of a batch and put its images into the nearest clusters.

        Args:
            row_B: int64 images in the order of the global batch; one that occurs twice moves twice.
            x_BD: their unit embeddings.

        Returns:
            The share of the batch that went to another cluster, a scalar.
        """
        update_in_order(self.feature_ND, row_B, x_BD, self.momentum)
        label_B = nearest(self.feature_ND[row_B], self.centroid_CD)
        changed_B = label_B != self.label_N[row_B]
        self.label_N[row_B] = label_B
        return changed_B.to(x_BD).mean()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the means of all clusters anew; an empty one keeps its centroid. O(N D)."""
        mean_CD = class_means(self.feature_ND, self.label_N, len(self.centroid_CD))
        self.centroid_CD.copy_(torch.where(self.sizes()[:, None] > 0, mean_CD, self.centroid_CD))

    @torch.no_grad()
    def balance(self) -> Tensor:
        """Dissolve small clusters and split large ones in their place; how many, an int64 scalar.

        The images of all small clusters go to the nearest of the other centroids. Then each emptied
        cluster, in rising order, takes the smaller half of the cluster that is the largest by then:
        the order is the definition, so this is a loop, of at most C turns of O(N + n D). A half that is
        small itself waits for the next call.
        """
        small_C = self.sizes() < self.min_size
        left_M = small_C[self.label_N].nonzero()[:, 0]
        self.label_N[left_M] = nearest(self.feature_ND[left_M], self.centroid_CD, ~small_C)
        for emptied in small_C.nonzero()[:, 0].tolist():
            self._halve(int(self.sizes().argmax()), emptied)
        return small_C.sum()

    def _halve(self, largest: int, emptied: int) -> None:
        member_n = (self.label_N == largest).nonzero()[:, 0]
        x_nD = self.feature_ND[member_n]
        leaves_n = smaller_half(x_nD)
        self.label_N[member_n[leaves_n]] = emptied
        self.centroid_CD[[largest, emptied]] = class_means(x_nD, leaves_n.long(), 2)
