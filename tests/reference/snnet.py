"""Slow readable twins of SNNet: methods.md 5 with loops, lists and an N x N matrix of bits."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.reference.memory import update_in_order


def sorted_images(memory: Tensor, image: int) -> list[int]:
    similarity = (memory @ memory[image]).tolist()
    return sorted(range(len(memory)), key=lambda j: (-similarity[j], j))


def positives(
    memory: Tensor, image: int, threshold: float, min_window: int, max_positives: int = 0
) -> list[int]:
    """The walk of the release."""
    order = sorted_images(memory, image)
    n = int((memory @ memory[image] > threshold).sum())
    k = min(max(n, min_window), len(memory))
    step = 1
    for j in range(k):
        if sorted_images(memory, order[j]).index(image) > k:
            break
        step = max(step, j)
    count = min(step + 1, n, max_positives or n)
    return sorted({image, *order[:count]})


def mmcl(z: Tensor, positive: list[int], delta: float, share: float) -> Tensor:
    negative = [j for j in range(len(z)) if j not in positive]
    hard = sorted(negative, key=lambda j: -z[j].item())[: max(1, int(share * len(negative)))]
    near = sum((1 - z[j]) ** 2 for j in positive) / len(positive)
    far = sum((1 + z[j]) ** 2 for j in hard) / max(1, len(hard))
    return delta * near + far


def plain_pm1(z: Tensor, positive: list[int]) -> Tensor:
    return sum((z[j] - (1 if j in positive else -1)) ** 2 for j in range(len(z)))


class Twin:
    """Memory, dense label memory and losses of one process."""

    def __init__(self, config, images: int, dim: int) -> None:
        self.config = config
        self.memory = torch.zeros(images, dim, dtype=torch.float64)
        self.claims = [{i} for i in range(images)]

    def terms(self, x: Tensor, row: list[int], mines: bool) -> dict[str, Tensor]:
        config, labels = self.config, self.labels(row, mines)
        weight = {name: getattr(config, f"{name}_weight") for name in labels}
        return {
            name: weight[name]
            * sum(self.loss(f @ self.memory.T, positive) for f, positive in zip(x, of, strict=True))
            / len(row)
            / sum(weight.values())
            for name, of in labels.items()
        }

    def loss(self, z: Tensor, positive: set[int]) -> Tensor:
        if self.config.loss == "plain_pm1":
            return plain_pm1(z, sorted(positive))
        return mmcl(z, sorted(positive), self.config.positive_weight, self.config.hard_share)

    def labels(self, row: list[int], mines: bool) -> dict[str, list[set[int]]]:
        config, count = self.config, len(self.memory)
        labels = {"base": [{i} for i in row]}
        if mines:
            labels["base"] = [
                set(positives(self.memory, i, config.threshold, config.min_window)) for i in row
            ]
        if mines or config.aux_from_start:
            if config.symmetric_weight:
                labels["symmetric"] = [
                    {j for j in range(count) if i in self.claims[j]} for i in row
                ]
            if config.neighbour_weight:
                labels["neighbour"] = [
                    self.claims[self.nearest(i)] | ({i} if config.force_self else set())
                    for i in row
                ]
        return labels

    def nearest(self, image: int) -> int:
        return next(j for j in sorted_images(self.memory, image) if j != image)

    def update(self, x: Tensor, row: list[int], momentum: float, mines: bool) -> None:
        claims = self.labels(row, mines)["base"]
        self.memory = update_in_order(self.memory, torch.tensor(row), x.detach(), momentum)
        for i, claim in zip(row, claims, strict=True):
            self.claims[i] = claim


def components(claims: list[set[int]]) -> list[int]:
    """The smallest image reached over mutual claims."""
    smallest = list(range(len(claims)))
    for _ in claims:
        for i, claim in enumerate(claims):
            for j in claim:
                if i in claims[j]:
                    smallest[i] = min(smallest[i], smallest[j])
    return smallest


def unit_rows(count: int, dim: int, seed: int, spread: float = math.inf) -> Tensor:
    """Random unit rows; around a common direction where ``spread`` is small."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, dim, generator=g, dtype=torch.float64)
    return F.normalize(x if spread == math.inf else torch.ones(dim) + spread * x, dim=1)
