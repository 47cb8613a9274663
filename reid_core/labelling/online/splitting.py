"""How a cluster falls apart: anchors at density peaks, and every node joins the anchor whose label reaches it most.

HCD's Eq. 4 (methods.md 3.5), for many clusters at once. G clusters, n nodes each (padded), a = K anchors at most.
A node is an image, or a cluster of the level below.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reid_core.labelling.online.propagation import affinity, mutual_nearest, normalise, propagate

PEAK = (0.4, 0.8)  # similarity of an anchor to the most similar denser node
MUTUAL = 30  # in clusters of more nodes, only mutual nearest pairs have an edge


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """The settings of a split; the defaults are those of HCD."""

    gap: int = 2  # a cluster of so many nodes stays whole
    limit: int = (
        4096  # and so does one of more nodes than this, whose n x n graph would be too large
    )
    anchors: int = 8  # K
    alpha: float = 0.99
    assign: Literal["raw", "column_normalised"] = "raw"  # argmax of P*, or of P* / its column sums
    order: Literal["near", "far"] = "near"  # which anchors come first: the least or most separated
    legacy_index: bool = False  # places among the candidates are read as places among the nodes
    legacy_floor: bool = False  # pairs without an edge have similarity 0, so affinity exp(-2)
    legacy_double_exp: bool = False  # the affinity is taken as similarity once more


def find_anchors(
    similarity_Gnn: Tensor, valid_Gn: Tensor, rule: SplitRule
) -> tuple[Tensor, Tensor]:
    """Density peaks (Rodriguez and Laio, Science 2014): places (G, a) int64, and which of them there are, bool.

    The densest node, then nodes whose most similar denser node has a similarity within ``PEAK``.
    """
    similarity_Gnn = similarity_Gnn.masked_fill(~valid_Gn[:, None, :], 0)
    density_Gn = similarity_Gnn.sum(dim=2) - 1
    denser_Gnn = (density_Gn[:, None, :] > density_Gn[:, :, None]) & valid_Gn[:, None, :]
    densest_Gn = ~denser_Gnn.any(dim=2)
    link_Gn = similarity_Gnn.masked_fill(~denser_Gnn, -torch.inf).amax(dim=2)
    link_Gn = link_Gn.masked_fill(densest_Gn, -1)
    low, high = PEAK
    candidate_Gn = valid_Gn & (densest_Gn | ((link_Gn > low) & (link_Gn < high)))
    rank_Gn = link_Gn.abs() if rule.order == "near" else -link_Gn
    rank_Gn = rank_Gn.masked_fill(~candidate_Gn, -torch.inf)
    place_Ga = rank_Gn.argsort(dim=1, descending=True, stable=True)[:, : rule.anchors]
    there_Ga = candidate_Gn.gather(1, place_Ga)
    if rule.legacy_index:
        place_Ga = (candidate_Gn.cumsum(1) - 1).gather(1, place_Ga).clamp(min=0)
    return place_Ga, there_Ga


def split(similarity_Gnn: Tensor, valid_Gn: Tensor, rule: SplitRule) -> Tensor:
    """The place of the anchor that every node joins, (G, n) int64; all the same where a cluster stays whole.

    Args:
        similarity_Gnn: symmetric, of the nodes.
        valid_Gn: bool, False for padding.
        rule: settings.
    """
    place_Ga, there_Ga = find_anchors(similarity_Gnn, valid_Gn, rule)
    s_Gnn = normalise(_weights(similarity_Gnn, valid_Gn, rule))
    y_Gna = s_Gnn.new_zeros(*valid_Gn.shape, place_Ga.shape[1])
    y_Gna.scatter_(1, place_Ga[:, None], there_Ga[:, None].to(s_Gnn))
    score_Gna = propagate(s_Gnn, y_Gna, rule.alpha)
    if rule.assign == "column_normalised":
        score_Gna = score_Gna / score_Gna.sum(dim=1, keepdim=True)
    score_Gna = score_Gna.masked_fill(~there_Ga[:, None], -torch.inf)
    return place_Ga.gather(1, score_Gna.argmax(dim=2))


def _weights(similarity_Gnn: Tensor, valid_Gn: Tensor, rule: SplitRule) -> Tensor:
    """W: affinities of the pairs with an edge; zero on the diagonal and for padding."""
    pair_Gnn = valid_Gn[:, :, None] & valid_Gn[:, None, :]
    near_Gnn = mutual_nearest(similarity_Gnn.masked_fill(~pair_Gnn, -torch.inf), MUTUAL)
    near_Gnn |= (valid_Gn.sum(dim=1) <= MUTUAL)[:, None, None]
    if rule.legacy_double_exp:
        similarity_Gnn = affinity(similarity_Gnn)
    unlinked = 0 if rule.legacy_floor else -torch.inf
    weight_Gnn = affinity(similarity_Gnn.masked_fill(~near_Gnn, unlinked))
    weight_Gnn *= pair_Gnn
    weight_Gnn.diagonal(dim1=1, dim2=2).zero_()
    return weight_Gnn
