"""Slow readable twins of the memory updates and losses: the equations with loops."""

import math

import torch
from torch import Tensor


def unit(row: Tensor) -> Tensor:
    return row / row.norm()


def update_in_order(rows: Tensor, row: Tensor, x: Tensor, momentum: float) -> Tensor:
    rows = rows.clone()
    for r, feature in zip(row.tolist(), x, strict=True):
        rows[r] = unit(momentum * rows[r] + (1 - momentum) * feature)
    return rows


def update_hardest(rows: Tensor, row: Tensor, x: Tensor, momentum: float) -> Tensor:
    new = rows.clone()
    for r in sorted(set(row.tolist())):
        members = [b for b, other in enumerate(row.tolist()) if other == r]
        hardest = min(members, key=lambda b: (float(x[b] @ rows[r]), b))
        new[r] = unit(momentum * rows[r] + (1 - momentum) * x[hardest])
    return new


def memory_nce(x: Tensor, label: Tensor, rows: Tensor, temperature: float) -> list[float]:
    losses = []
    for feature, y in zip(x, label.tolist(), strict=True):
        score = [math.exp(float(feature @ row) / temperature) for row in rows]
        losses.append(-math.log(score[y] / sum(score)))
    return losses


def hybrid_nce(x: Tensor, row: Tensor, memory: Tensor, classes: Tensor, tau: float) -> list[float]:
    """methods.md 2.4: the mean of the similarities to the rows of a class, softmax over classes."""
    losses = []
    present = sorted(set(classes.tolist()))
    for feature, own in zip(x, row.tolist(), strict=True):
        mean = {}
        for k in present:
            members = [r for r, c in enumerate(classes.tolist()) if c == k]
            mean[k] = torch.stack([feature @ memory[r] / tau for r in members]).mean().item()
        total = sum(math.exp(value) for value in mean.values())
        losses.append(-math.log(math.exp(mean[int(classes[own])]) / total))
    return losses
