"""Slow readable twins of ISE: the equations of methods.md 6.2 with loops, differentiable."""

import math

import torch
from torch import Tensor

from tests.reference.memory import unit


def degree(kind: str, lam0: float, u: float) -> float:
    if kind == "constant":
        return lam0 / 2
    if kind == "linear":
        return lam0 * u / 2
    if kind == "square":
        return lam0 * u * u / 2
    return lam0 / 2 * math.log((math.e - 1) * u + 1)


def other_classes(score: Tensor, own: int, count: int) -> list[int]:
    """The best scored classes of one image without its own."""
    others = [c for c in range(len(score)) if c != own]
    return sorted(others, key=lambda c: -float(score[c]))[:count]


def supports(x: Tensor, own: int, toward: list[int], memory: Tensor, lam: float) -> list[Tensor]:
    """The support samples of one image."""
    return [unit(x + lam * (memory[c] - memory[own]) / 2) for c in toward]


def cross_entropy(x: Tensor, own: int, memory: Tensor, tau: float) -> Tensor:
    score = [(x @ row / tau).exp() for row in memory]
    return -(score[own] / sum(score)).log()


def extension(samples: list[list[Tensor]], label: list[int], memory: Tensor, tau: float) -> Tensor:
    """L_SE over all images and their support samples."""
    losses = [
        cross_entropy(sample, y, memory, tau)
        for own, y in zip(samples, label, strict=True)
        for sample in own
    ]
    return torch.stack(losses).mean()


def label_preserving(
    x: list[Tensor], label: list[int], candidates: list[tuple[Tensor, int]], tau: float
) -> Tensor:
    """L_LP over all images; ``candidates`` are rows with their labels."""
    losses = []
    for anchor, y in zip(x, label, strict=True):
        score: dict[int, list[Tensor]] = {}
        for row, c in candidates:
            score.setdefault(c, []).append((anchor @ row / tau).exp())
        positive = min(score[y])
        negatives = [max(of) for c, of in score.items() if c != y]
        losses.append(-(positive / (positive + sum(negatives))).log())
    return torch.stack(losses).mean()
