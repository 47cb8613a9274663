"""Label propagation in closed form: HCD's Eq. 2 and Eq. 3, for many small graphs at once.

After Zhou, Bousquet, Lal, Weston, Schölkopf: Learning with Local and Global Consistency (NeurIPS 2003), without
the factor (1 - alpha) and without normalising rows, since HCD compares raw scores with a threshold.
G graphs, n nodes each, a labels. A smaller graph is padded with nodes that have no edge: they change no other score.
"""

import torch
from torch import Tensor


def affinity(similarity: Tensor) -> Tensor:
    """exp(-(2 - 2 s)), which is exp(-|a - b|^2) for unit rows; any shape."""
    return torch.exp(2 * similarity - 2)


def mutual_nearest(similarity_Gnn: Tensor, count: int) -> Tensor:
    """Pairs of which each is among the ``count`` most similar nodes of the other, (G, n, n) bool.

    A node counts among its own nearest where it is one of them: always for unit rows.
    """
    nearest = similarity_Gnn.topk(min(count, similarity_Gnn.shape[-1])).indices
    near_Gnn = torch.zeros_like(similarity_Gnn, dtype=torch.bool).scatter_(2, nearest, True)
    return near_Gnn & near_Gnn.mT


def normalise(affinity_Gnn: Tensor) -> Tensor:
    """Eq. 3: S = D^-1/2 W D^-1/2, D the row sums; rows without an edge stay zero."""
    degree_Gn = affinity_Gnn.sum(dim=2)
    scale_Gn = torch.where(degree_Gn > 0, degree_Gn.rsqrt(), 0)
    return affinity_Gnn * (scale_Gn[:, :, None] * scale_Gn[:, None, :])


def propagate(s_Gnn: Tensor, y_Gna: Tensor, alpha: float) -> Tensor:
    """Eq. 2: P* = (I - alpha S)^-1 Y, (G, n, a).

    Args:
        s_Gnn: symmetric, spectral radius at most 1.
        y_Gna: the labels given.
        alpha: share of a score that comes from the neighbours, in [0, 1).
    """
    eye = torch.eye(s_Gnn.shape[-1], dtype=s_Gnn.dtype, device=s_Gnn.device)
    return torch.linalg.solve(eye - alpha * s_Gnn, y_Gna)


def reach_first(similarity_Gnn: Tensor, linked_Gnn: Tensor, alpha: float) -> Tensor:
    """How strongly the label of every node reaches node 0: row 0 of P*, (G, n); its own entry is 0.

    Every node has its own label but node 0, which has none. A node's affinity to itself is 1 in the
    degrees and 0 in S: without it an isolated pair would score the same for every similarity.

    Args:
        similarity_Gnn: symmetric.
        linked_Gnn: bool, symmetric: which pairs have an edge; the diagonal is not read.
        alpha: as in ``propagate``.
    """
    weight_Gnn = affinity(similarity_Gnn) * linked_Gnn
    weight_Gnn.diagonal(dim1=1, dim2=2).fill_(1)
    s_Gnn = normalise(weight_Gnn)
    s_Gnn.diagonal(dim1=1, dim2=2).zero_()
    first = s_Gnn.new_zeros(s_Gnn.shape[1])
    first[0] = 1
    # P* is symmetric for Y = I, so its row 0 is its column 0: one right-hand side instead of n.
    score_Gn = propagate(s_Gnn, first[None, :, None].expand(len(s_Gnn), -1, 1), alpha)[:, :, 0]
    score_Gn[:, 0] = 0
    return score_Gn
