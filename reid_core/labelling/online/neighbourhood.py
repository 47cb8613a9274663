"""What an image's label should be near: its nearest rows of a bank, and the one among them that it belongs to.

HCD, methods.md 3.6 and 3.7. R bank rows (S source prototypes first), B images, n neighbours of each, D feature size.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from reid_core.labelling.online.propagation import reach_first

LINES = 16  # of which the rows are gathered at a time: they fit a CPU's cache


@dataclass(frozen=True, kw_only=True)
class NeighbourRule:
    """When an image joins a neighbour; the defaults are those of HCD."""

    rule: Literal["propagated", "plain"] = "propagated"
    nearest: int = 20  # the neighbour must be one of so many nearest, the image itself included
    threshold: float = 0.45  # similarity above which mutual nearest images have an edge
    alpha: float = 0.99
    sigma: float = 0.25  # the score that the neighbour must exceed


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """The nearest rows of the bank, and how similar they are to each other."""

    row_Bn: Tensor  # int64; the image itself first, then by falling similarity
    similarity_Bnn: Tensor

    def linked(self, count: int, threshold: float) -> Tensor:
        """Mutual ``count`` nearest pairs inside the neighbourhood above a similarity, (B, n, n) bool."""
        near_Bnn = self._rank < count
        return near_Bnn & near_Bnn.mT & (self.similarity_Bnn > threshold)

    @cached_property
    def _rank(self) -> Tensor:
        """The place of each node (last) among the most similar ones of another, from 0."""
        order_Bnn = self.similarity_Bnn.argsort(dim=2, descending=True, stable=True)
        place_n = torch.arange(order_Bnn.shape[2], device=order_Bnn.device)
        return torch.empty_like(order_Bnn).scatter_(2, order_Bnn, place_n.expand_as(order_Bnn))


def similarities(row_RD: Tensor, place_Bn: Tensor) -> Tensor:
    """Inner products of the rows at each line's places, (B, n, n)."""
    lines = (row_RD[part] for part in place_Bn.split(LINES))
    return torch.cat([x_BnD @ x_BnD.mT for x_BnD in lines])


def neighbourhood(bank_RD: Tensor, row_B: Tensor, count: int, first: int = 0) -> Neighbourhood:
    """The ``count`` nearest rows of each row, itself included, from row ``first`` on; all if there are fewer.

    O(B R D) time, O(B R) memory.
    """
    similarity_BR = bank_RD[row_B] @ bank_RD[first:].T
    similarity_BR.scatter_(1, (row_B - first)[:, None], torch.inf)
    row_Bn = first + similarity_BR.topk(min(count, similarity_BR.shape[1])).indices
    return Neighbourhood(row_Bn, similarities(bank_RD, row_Bn))


def best_neighbours(
    near: Neighbourhood, sources: int, rule: NeighbourRule
) -> tuple[Tensor, Tensor]:
    """The row (B,) that each image belongs to most, and whether it shall join it, bool (B,).

    ``plain`` is Algorithm 1 of the supplement: the nearest image, always. ``propagated`` is the release:
    the neighbour whose label reaches the image most, if it is near, reaches enough and is no source row.

    Args:
        near: the neighbourhoods.
        sources: S.
        rule: settings.
    """
    image_Bn = near.row_Bn >= sources
    if rule.rule == "plain":
        score_Bn = image_Bn.to(near.similarity_Bnn)
        enough_Bn = image_Bn
    else:
        linked_Bnn = near.linked(rule.nearest, rule.threshold)
        score_Bn = reach_first(near.similarity_Bnn, linked_Bnn, rule.alpha)
        enough_Bn = image_Bn & (score_Bn > rule.sigma)
        enough_Bn[:, rule.nearest :] = False
    score_Bn[:, 0] = -1
    enough_Bn[:, 0] = False
    place_B1 = score_Bn.argmax(dim=1, keepdim=True)
    return near.row_Bn.gather(1, place_B1)[:, 0], enough_Bn.gather(1, place_B1)[:, 0]
