"""Slow readable twin of MoCo: the equations with loops, the queue as a list."""

from typing import Any

import torch
from torch import Tensor

from tests.reference.memory import unit


def info_nce(query: Tensor, key: Tensor, queue: list[Tensor], tau: float) -> Tensor:
    """Eq. 1 of one query."""
    positive = (query @ key / tau).exp()
    return -(positive / (positive + sum((query @ old / tau).exp() for old in queue))).log()


def project(x: Tensor, weight: Tensor) -> list[Tensor]:
    return [unit(weight @ row) for row in x]


def follow(old: dict[str, Tensor], new: dict[str, Tensor], weight: float) -> dict[str, Any]:
    """Eq. 2 for every number of a network; counters stay."""
    return {
        name: weight * old[name] + (1 - weight) * new[name] if value.is_floating_point() else value
        for name, value in old.items()
    }


def mean_loss(queries: list[Tensor], keys: list[Tensor], queue: list[Tensor], tau: float) -> Tensor:
    losses = [info_nce(q, k, queue, tau) for q, k in zip(queries, keys, strict=True)]
    return torch.stack(losses).mean()
