"""Slow readable twin of BYOL: the equations image by image, BatchNorm group by group."""

import math

import torch
from torch import Tensor

from tests.reference.memory import unit


def target_weights(steps: int, base: float) -> list[float]:
    """tau of every step of a run."""
    return [1 - (1 - base) * (math.cos(math.pi * k / steps) + 1) / 2 for k in range(steps)]


def head(x: Tensor, weights: dict[str, Tensor], group: int) -> Tensor:
    """Linear, BatchNorm by the statistics of each group, ReLU, linear."""
    x = torch.stack([weights["0.weight"] @ row + weights["0.bias"] for row in x])
    groups = []
    for start in range(0, len(x), group):
        part = x[start : start + group]
        mean = part.mean(dim=0)
        deviation = ((part - mean).square().mean(dim=0) + 1e-5).sqrt()
        groups.append((part - mean) / deviation * weights["1.weight"] + weights["1.bias"])
    hidden = torch.cat(groups).clamp(min=0)
    return torch.stack([weights["3.weight"] @ row + weights["3.bias"] for row in hidden])


def distance(prediction: Tensor, projection: Tensor) -> Tensor:
    """2 - 2 cos, the mean over images."""
    losses = [2 - 2 * unit(p) @ unit(z) for p, z in zip(prediction, projection, strict=True)]
    return torch.stack(losses).mean()
