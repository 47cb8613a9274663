"""What the one loop hands to a method and gets back: batches and steps, domains and rounds.

N images of a domain, B global batch of a domain, b this rank's share, D feature size, L label levels.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

TARGET, SOURCE = 0, 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """This rank's share of a global batch; source images first, then target images."""

    image: tuple[Tensor, ...]  # one (b, 3, H, W) float tensor a view
    image_id: Tensor  # (b,) int64
    row: Tensor  # (b,) int64, rank of the id among the training ids of its domain
    camid: Tensor  # (b,) int64, -1 unknown
    label: Tensor  # (b, L) int64; of the LABELS of this round, or the class of a source image
    domain: Tensor  # (b,) int64, TARGET or SOURCE
    position: Tensor  # (b,) int64, place in the global batch: source 0..B-1, target after it
    seed: int  # of (run, round, step), equal on all ranks

    def to(self, device: torch.device) -> "Batch":
        """Copy the tensors to ``device``."""
        moved = {
            k: v.to(device, non_blocking=True)
            for k, v in vars(self).items()
            if isinstance(v, Tensor)
        }
        views = tuple(view.to(device, non_blocking=True) for view in self.image)
        return Batch(image=views, seed=self.seed, **moved)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a forward pass gives to the loop and to ``update``."""

    terms: dict[str, Tensor]  # named scalar losses; their sum is minimised
    embedding: Tensor  # (b, D) unit rows, with gradient
    extra: dict[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The sum of the terms."""
        return torch.stack(list(self.terms.values())).sum()


@dataclass(frozen=True, kw_only=True)
class Domain:
    """The training images of one domain in ``image_id`` order, as one round sees them."""

    image_id: Tensor  # (N,) int64
    camid: Tensor  # (N,) int64, -1 unknown
    label: Tensor  # (N, L) int64, -1 outlier
    feature: Tensor | None  # (N, D) unit rows where this round extracted them

    @property
    def extracted(self) -> Tensor:
        """The features of a round that did extract them."""
        assert self.feature is not None, "labels_from() of this round says no 'extracted' or 'ids'"
        return self.feature

    def to(self, device: torch.device) -> "Domain":
        """Copy the tensors to ``device``."""
        moved = {name: x.to(device) for name, x in vars(self).items() if x is not None}
        return replace(self, **moved)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round: what the papers call an epoch."""

    number: int  # from 0
    rounds: int
    step: int  # optimiser steps made before this round
    target: Domain
    source: Domain | None

    def to(self, device: torch.device) -> "Round":
        """Copy the tensors to ``device``."""
        source = None if self.source is None else self.source.to(device)
        return replace(self, target=self.target.to(device), source=source)


class Sizes(NamedTuple):
    """What an objective must know before the first round."""

    images: int  # N target training images
    classes: int  # S source classes, 0 without a source
    dim: int  # D
