"""Slow readable twins of HDCPD's losses: the equations of methods.md 4.3 with loops; autograd gives their gradients."""

import torch
from torch import Tensor


def info_nce(positive: Tensor, others: list[Tensor], temperature: float) -> Tensor:
    scores = [(s / temperature).exp() for s in (positive, *others)]
    return -(scores[0] / torch.stack(scores).sum()).log()


def hardest_nce(x: Tensor, own: Tensor, rows: Tensor, classes: Tensor, tau: float) -> Tensor:
    """Eq. 1."""
    losses = []
    for query, y in zip(x, own.tolist(), strict=True):
        similar: dict[int, list[Tensor]] = {}
        for row, k in zip(rows, classes.tolist(), strict=True):
            similar.setdefault(k, []).append(query @ row)
        positive = min(similar.pop(y))
        losses.append(info_nce(positive, [max(s) for s in similar.values()], tau))
    return torch.stack(losses)


def batch_nce(
    x: Tensor, own: Tensor, image: Tensor, tau: float, negatives: str = "all"
) -> list[Tensor | None]:
    """Eq. 2; None for a query without a positive."""
    losses: list[Tensor | None] = []
    for i in range(len(x)):
        positive: list[Tensor] = []
        negative: dict[int, list[Tensor]] = {}
        for j in range(len(x)):
            if own[j] != own[i]:
                negative.setdefault(int(own[j]), []).append(x[i] @ x[j])
            elif image[j] != image[i]:
                positive.append(x[i] @ x[j])
        if negatives == "all":
            others = [s for group in negative.values() for s in group]
        else:
            others = [max(group) for group in negative.values()]
        losses.append(info_nce(min(positive), others, tau) if positive else None)
    return losses


def softmax(scores: list[Tensor]) -> list[Tensor]:
    total = torch.stack([s.exp() for s in scores]).sum()
    return [s.exp() / total for s in scores]


def probability_distance(x: Tensor, teacher: Tensor, prototypes: Tensor, ts: float, tt: float):
    """Eq. 6 and 7, one value a query."""
    losses = []
    for q, t in zip(x, teacher.detach(), strict=True):
        student_p = softmax([q @ c / ts for c in prototypes])
        teacher_p = softmax([t @ c / tt for c in prototypes])
        squares = [(a - b) ** 2 for a, b in zip(student_p, teacher_p, strict=True)]
        losses.append(torch.stack(squares).sum())
    return torch.stack(losses)


def batch_axis_distance(x: Tensor, teacher: Tensor, prototypes: Tensor, ts: float, tt: float):
    """The transposed softmax of the release: each class is a distribution over the images; one value a query."""
    total = torch.zeros(len(x), dtype=x.dtype)
    for c in prototypes:
        student_p = softmax([q @ c / ts for q in x])
        teacher_p = softmax([t @ c / tt for t in teacher.detach()])
        pairs = zip(student_p, teacher_p, strict=True)
        total = total + torch.stack([(a - b) ** 2 for a, b in pairs])
    return total


def class_means(rows: Tensor, classes: Tensor, wanted: list[int]) -> Tensor:
    return torch.stack([rows[classes == k].mean(dim=0) for k in wanted])


def ema_weights(steps: int, ema: float, ramp: str, reset: int) -> list[float]:
    """methods.md 4.4, step by step."""
    weights = []
    for t in range(steps):
        if ramp == "none" or (ramp == "released" and t < reset):
            weights.append(ema)
        elif ramp == "released":
            weights.append(min(1 - 1 / (t - (reset - 1)), ema))
        else:
            weights.append(min(1 - 1 / (t + 1), ema))
    return weights
