"""HCD's labels: a hierarchy of clusters that changes with every batch (methods.md 3.5 to 3.7).

H levels, the first the finest; R rows of the feature bank: S source prototypes, then N images; B rows of images in the
order of the batch; n neighbours of each; D feature size. The bank is only read here.

A cluster's label is its smallest row, at every level: source rows keep their own index, and equal partitions have
equal labels. (The release numbers the clusters of the coarsest level afresh: other names, the same clusters.)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid_core.labelling.components import smallest_linked
from reid_core.labelling.online.neighbourhood import Neighbourhood, similarities
from reid_core.labelling.online.propagation import reach_first
from reid_core.labelling.online.splitting import SplitRule, split

SMALL = 4  # a cluster of so many images stays whole
CELLS = 2**24  # similarities in one block of padded clusters


@dataclass(frozen=True, kw_only=True)
class MergeRule:
    """When the clusters around an image become one; the defaults are those of HCD."""

    connect: int = 30  # an edge needs two images, each among so many nearest of the other
    threshold: float = 0.45  # and a similarity above this
    alpha: float = 0.99
    sigma: float = 0.25  # the score that a cluster must exceed


def smallest_member(label_R: Tensor, names: int) -> Tensor:
    """Rename every cluster by its smallest row, (R,); labels lie in [0, names)."""
    row_R = torch.arange(len(label_R), device=label_R.device)
    smallest = label_R.new_full((names,), len(label_R))
    return smallest.scatter_reduce_(0, label_R, row_R, "amin")[label_R]


def occurs_before(x_Bn: Tensor) -> Tensor:
    """Whether the same value stands earlier in its line, (B, n) bool."""
    value_Bn, place_Bn = x_Bn.sort(dim=1, stable=True)
    again_Bn = F.pad(value_Bn.diff(dim=1) == 0, (1, 0))
    return torch.zeros_like(again_Bn).scatter_(1, place_Bn, again_Bn)


def means_of(bank_RD: Tensor, label_R: Tensor, label_C: Tensor) -> Tensor:
    """Arithmetic means (C, D), not normalised, of the rows that carry each of the distinct labels (C,).

    Reads no other rows, and copies none.
    """
    place_R = torch.full_like(label_R, -1)
    place_R[label_C] = torch.arange(len(label_C), device=label_C.device)
    place_R = place_R[label_R]
    row_M = (place_R >= 0).nonzero()[:, 0]
    place_M, order = place_R[row_M].sort(stable=True)
    size_C = place_M.bincount(minlength=len(label_C))
    start_C = size_C.cumsum(0) - size_C
    sums_CD = F.embedding_bag(row_M[order], bank_RD, start_C, mode="sum")
    return sums_CD / size_C[:, None].to(sums_CD)


class Nodes(NamedTuple):
    """What the clusters of a level are made of: images, or the clusters of the level below."""

    bank_RD: Tensor
    label_R: Tensor  # int64, the node of each row
    mean_label_R: (
        Tensor  # the rows with a node's label here make its mean: itself, or an older state
    )

    def of_clusters(
        self, label_R: Tensor, label_C: Tensor, rule: SplitRule
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The nodes of those clusters (distinct labels (C,)) that may be split, padded.

        Clusters of like size come together, at most ``CELLS`` pairs at a time: their nodes (G, n)
        int64 in rising order, and which are there, bool.
        """
        place_R = torch.full_like(label_R, -1)
        place_R[label_C] = torch.arange(len(label_C), device=label_C.device)
        place_R = place_R[label_R]
        image_I = (place_R >= 0).nonzero()[:, 0]
        node_V = image_I[self.label_R[image_I] == image_I]
        node_V = node_V[place_R[node_V].argsort(stable=True)]
        images_C = place_R[image_I].bincount(minlength=len(label_C))
        nodes_C = place_R[node_V].bincount(minlength=len(label_C))
        start_C = nodes_C.cumsum(0) - nodes_C
        open_C = (images_C > SMALL) & (nodes_C > rule.gap) & (nodes_C <= rule.limit)
        power_C = torch.frexp(nodes_C.double() - 1).exponent  # n <= 2^power
        for power in power_C[open_C].unique().tolist():
            place_n = torch.arange(2**power, device=label_R.device)
            alike = (open_C & (power_C == power)).nonzero()[:, 0]
            for which in alike.split(max(1, CELLS // 4**power)):
                there_Gn = place_n < nodes_C[which, None]
                place_Gn = (start_C[which, None] + place_n).clamp(max=len(node_V) - 1)
                yield node_V[place_Gn], there_Gn

    def features(self, node_Gn: Tensor, there_Gn: Tensor) -> Tensor:
        """The means of nodes, (G, n, D); zero for padding."""
        x_GnD = self.bank_RD.new_zeros(*node_Gn.shape, self.bank_RD.shape[1])
        x_GnD[there_Gn] = means_of(self.bank_RD, self.mean_label_R, node_Gn[there_Gn])
        return x_GnD


class LabelHierarchy(nn.Module):
    """The clusters of all levels; each lies inside one of the level above.

    Every operation keeps that nesting and leaves source rows alone. It takes O(R) beside the work on
    the clusters it concerns.

    Args:
        levels: H.
        images: N.
        sources: S.
    """

    label_HR: Tensor

    def __init__(self, levels: int, images: int, sources: int) -> None:
        super().__init__()
        self.sources = sources
        alone_R = torch.arange(sources + images)
        self.register_buffer("label_HR", alone_R.repeat(levels, 1))

    def fill(self, label_N: Tensor) -> None:
        """Give all levels one clustering of the images; -1 is an image alone."""
        count = len(label_N)
        alone_N = count + torch.arange(count, device=label_N.device)
        label_N = smallest_member(torch.where(label_N < 0, alone_N, label_N), 2 * count)
        self.label_HR[:, self.sources :] = self.sources + label_N

    def isolate(self, row_B: Tensor) -> None:
        """Make each of the images a cluster of its own at all levels."""
        rows = self.label_HR.shape[1]
        for label_R in self.label_HR:
            label_R[row_B] = rows + row_B
            label_R.copy_(smallest_member(label_R, 2 * rows))

    def join(self, row_B: Tensor, other_B: Tensor) -> None:
        """Put each row, alone so far, into the clusters of its other one at all levels.

        Rows that were sent to each other, in a chain or a circle, come together.
        """
        for label_R in self.label_HR:
            _unite(label_R, label_R[row_B], label_R[other_B])

    def split(self, level: int, nodes: Nodes, row_B: Tensor, rule: SplitRule) -> Tensor:
        """Split the cluster of each image, as if one image after the other; how many splits had an effect.

        Different clusters do not touch each other and go together; the images of one cluster go in
        rounds, at most as many as the batch has images of it. A cluster that stays whole would do so
        for its next image, too: it is done.

        Args:
            level: from 0, the finest.
            nodes: what the clusters are made of.
            row_B: the images.
            rule: settings.
        """
        label_R = self.label_HR[level]
        effective = label_R.new_zeros(())
        while len(row_B):
            label_B = label_R[row_B]
            divided_R = _divide(label_R, label_B.unique(), nodes, rule)
            effective += divided_R.sum()
            row_B = row_B[divided_R[label_B] & occurs_before(label_B[None])[0]]
        return effective

    def merge(
        self, level: int, bank_RD: Tensor, near: Neighbourhood, best_B: Tensor, rule: MergeRule
    ) -> Tensor:
        """Unite with each image's cluster those around it that its label reaches; how many clusters went.

        The nodes are the image itself and the clusters of its neighbours, each in the place of its
        first one, whose edges it has. Below the last level only what has one cluster above may merge.

        Args:
            level: from 0, the finest.
            bank_RD: unit rows.
            near: neighbourhoods of the images.
            best_B: the row each image belongs to most; where its cluster is not reached, nothing merges.
            rule: settings.
        """
        label_R = self.label_HR[level]
        label_Bn = label_R[near.row_Bn]
        node_Bn = torch.ones_like(label_Bn, dtype=torch.bool)
        node_Bn[:, 1:] = ~occurs_before(label_Bn[:, 1:])
        linked_Bnn = near.linked(rule.connect, rule.threshold)
        linked_Bnn &= node_Bn[:, :, None] & node_Bn[:, None, :]
        label_C, place_Bn = label_Bn.unique(return_inverse=True)
        row_ED = torch.cat([means_of(bank_RD, label_R, label_C), bank_RD[near.row_Bn[:, 0]]])
        place_Bn[:, 0] = torch.arange(len(label_C), len(row_ED), device=place_Bn.device)
        score_Bn = reach_first(similarities(row_ED, place_Bn), linked_Bnn, rule.alpha)
        merged_Bn = (score_Bn > rule.sigma) & (label_Bn >= self.sources)
        if level + 1 < len(self.label_HR):
            above_Bn = self.label_HR[level + 1][near.row_Bn]
            merged_Bn &= above_Bn == above_Bn[:, :1]
        best_B1 = label_R[best_B][:, None]
        reached_B1 = (merged_Bn & (label_Bn == best_B1)).any(dim=1, keepdim=True)
        merged_Bn &= reached_B1 | (label_Bn[:, :1] == best_B1)
        own_Bn = label_Bn[:, :1].expand_as(label_Bn)
        return _unite(label_R, own_Bn[merged_Bn], label_Bn[merged_Bn])


def _unite(label_R: Tensor, label_E: Tensor, other_E: Tensor) -> Tensor:
    """Unite pairs of clusters transitively, in place; how many clusters went."""
    root_R = smallest_linked(torch.stack([label_E, other_E]), len(label_R))
    gone = (root_R != torch.arange(len(root_R), device=root_R.device)).sum()
    label_R.copy_(root_R[label_R])
    return gone


def _divide(label_R: Tensor, label_C: Tensor, nodes: Nodes, rule: SplitRule) -> Tensor:
    """Split each of the clusters (distinct labels (C,)) once, in place; which labels fell apart, (R,) bool."""
    owner_R = label_R.clone()
    for node_Gn, there_Gn in nodes.of_clusters(label_R, label_C, rule):
        x_GnD = nodes.features(node_Gn, there_Gn)
        anchor_Gn = node_Gn.gather(1, split(x_GnD @ x_GnD.mT, there_Gn, rule))
        owner_R[node_Gn[there_Gn]] = anchor_Gn[there_Gn]
    new_R = smallest_member(owner_R[nodes.label_R], len(label_R))
    divided_R = torch.zeros_like(label_R, dtype=torch.bool)
    divided_R[label_R[new_R != label_R]] = True
    label_R.copy_(new_R)
    return divided_R
